//! Which device a name stands for: `auto`, `cpu`, `sim`, `cuda`, `cuda:1`.

use super::driver::cuda;
use super::driver::sim::SimOptions;
use super::gpu::Gpu;
use super::{Device, driver};
use crate::error::UserError;

/// How a simulated GPU is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SimMode {
    /// Every checker on.
    #[default]
    Checked,
    /// None, several times as fast.
    Fast,
}

/// The name of the device that `auto` stands for here: the first card if it can be used, else the processor.
pub fn auto() -> &'static str {
    match cuda::cards() {
        Ok(cards) if cards.first().is_some_and(|(_, capability)| *capability >= cuda::CAPABILITY_MIN) => "cuda:0",
        _ => "cpu",
    }
}

/// What a name of a device means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    Cpu,
    Sim,
    Cuda(usize),
}

fn parse(name: &str) -> Option<Name> {
    match name {
        "cpu" => Some(Name::Cpu),
        "sim" => Some(Name::Sim),
        "cuda" => Some(Name::Cuda(0)),
        _ => name.strip_prefix("cuda:")?.parse().ok().map(Name::Cuda),
    }
}

/// The full name of a device, `auto` resolved.
///
/// # Errors
/// A name that is none.
pub fn resolve(name: &str) -> Result<String, UserError> {
    match (name, parse(name)) {
        ("auto", _) => Ok(auto().to_string()),
        (_, Some(Name::Cuda(index))) => Ok(format!("cuda:{index}")),
        (_, Some(_)) => Ok(name.to_string()),
        (_, None) => Err(UserError(format!("device {name:?} is not known here; auto, cpu, sim and cuda[:i] are"))),
    }
}

/// What the GPU of a name can execute; none for the processor and for what is not there.
pub fn capability(name: &str) -> Option<driver::Capability> {
    match parse(&resolve(name).ok()?)? {
        Name::Cpu => None,
        Name::Sim => Some(SimOptions::checked().capability),
        Name::Cuda(index) => cuda::cards().ok()?.get(index).map(|(_, capability)| *capability),
    }
}

/// Opens the device of a name.
///
/// # Errors
/// A name that is none, a driver or card that is not there, a program that was built without kernels.
pub fn open(name: &str, mode: SimMode) -> Result<Device, UserError> {
    let opened = match parse(&resolve(name)?) {
        Some(Name::Sim) => Gpu::sim(match mode {
            SimMode::Checked => SimOptions::checked(),
            SimMode::Fast => SimOptions::fast(),
        }),
        Some(Name::Cuda(index)) => Gpu::cuda(index),
        _ => return Ok(Device::Cpu),
    };
    let told = |error: driver::DeviceError| UserError(format!("--device {name}: {error}"));
    opened.map(Device::Gpu).map_err(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!(resolve("cuda").unwrap(), "cuda:0");
        assert_eq!(resolve("cuda:3").unwrap(), "cuda:3");
        assert!(["cpu", "cuda:0"].contains(&&resolve("auto").unwrap()[..]));
        for wrong in ["gpu", "cuda:", "cuda:x", "", "Sim"] {
            assert!(resolve(wrong).unwrap_err().to_string().contains("auto, cpu, sim"), "{wrong}");
        }
        assert_eq!(open("cpu", SimMode::Checked).unwrap(), Device::Cpu);
    }
}
