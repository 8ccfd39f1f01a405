//! The address model: state spaces, and the windows that shared, local and parameter memory take in generic addresses.
//!
//! Global and constant memory live in one 64-bit space that starts at [`HEAP_BASE`], above 4 GiB so that an address cut
//! to 32 bits never hits. A shared address is `rank << 24 | offset`, where `rank` is the CTA's rank in its cluster: the
//! addresses that a CTA takes of its own variables carry its own rank, so that they are valid `shared::cluster`
//! addresses of every CTA in the cluster. A generic address of shared memory is [`SHARED_WINDOW`] plus that.

/// A PTX state space after generic addresses have been resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Global memory.
    Global,
    /// Constant memory.
    Const,
    /// Shared memory of any CTA of the cluster.
    Shared,
    /// A thread's own memory.
    Local,
    /// Parameters of the kernel.
    Param,
}

impl Space {
    /// The name in PTX, without the dot.
    pub fn name(self) -> &'static str {
        match self {
            Space::Global => "global",
            Space::Const => "const",
            Space::Shared => "shared",
            Space::Local => "local",
            Space::Param => "param",
        }
    }
}

/// First address of the heap: allocations and module variables.
pub const HEAP_BASE: u64 = 0x0000_0007_0000_0000;
/// Generic address of shared address 0; the window has 16 slots of 16 MiB, one per CTA of a cluster.
pub const SHARED_WINDOW: u64 = 0x0000_7F10_0000_0000;
/// Bytes between the shared memories of two CTAs of a cluster, in `shared::cluster` and generic addresses.
pub const SHARED_STRIDE: u64 = 1 << 24;
/// CTAs in the largest cluster (the non-portable maximum of sm_90).
pub const CLUSTER_MAX: u64 = 16;
/// Generic address of a thread's local address 0.
pub const LOCAL_WINDOW: u64 = 0x0000_7F20_0000_0000;
/// Bytes of the local window.
pub const LOCAL_SPAN: u64 = 1 << 24;
/// Generic address of the first byte of the kernel's parameters.
pub const PARAM_WINDOW: u64 = 0x0000_7F30_0000_0000;
/// Bytes of the parameter window.
pub const PARAM_SPAN: u64 = 1 << 16;
/// Where blocks of device-side `malloc` lie.
pub const DEVICE_HEAP: u64 = 0x0000_6000_0000_0000;
/// Addresses of functions, as pointers to them hold them; no memory lies there.
pub const FUNCTION_WINDOW: u64 = 0x0000_7F40_0000_0000;
/// Bytes before and after every allocation that belong to nobody.
pub const RED_ZONE_BYTES: u64 = 256;

/// Splits a generic address into its state space and the address inside that space. What lies in no window is global.
pub fn resolve_generic(address: u64) -> (Space, u64) {
    match address {
        a if (SHARED_WINDOW..SHARED_WINDOW + CLUSTER_MAX * SHARED_STRIDE).contains(&a) => {
            (Space::Shared, a - SHARED_WINDOW)
        }
        a if (LOCAL_WINDOW..LOCAL_WINDOW + LOCAL_SPAN).contains(&a) => (Space::Local, a - LOCAL_WINDOW),
        a if (PARAM_WINDOW..PARAM_WINDOW + PARAM_SPAN).contains(&a) => (Space::Param, a - PARAM_WINDOW),
        a => (Space::Global, a),
    }
}

/// The generic address of an address of `space` (`cvta`).
pub fn to_generic(space: Space, address: u64) -> u64 {
    match space {
        Space::Global | Space::Const => address,
        Space::Shared => SHARED_WINDOW + address,
        Space::Local => LOCAL_WINDOW + address,
        Space::Param => PARAM_WINDOW + address,
    }
}

/// Rank in the cluster of the CTA that a shared address belongs to.
pub fn shared_rank(address: u64) -> u32 {
    (address / SHARED_STRIDE) as u32
}

/// Offset of a shared address in its CTA's shared memory.
pub fn shared_offset(address: u64) -> u32 {
    (address % SHARED_STRIDE) as u32
}
