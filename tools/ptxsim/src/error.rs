//! The error type of the library: where in the PTX, and what.

/// Result of the library.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a module, a launch or a host call was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The PTX is not what the grammar or an instruction's definition allows, or this simulator does not know the form.
    #[error("{file}:{line}: {message}")]
    Ptx {
        /// File, as given to the parser.
        file: String,
        /// Line, from 1.
        line: u32,
        /// What, with the instruction's text where there is one.
        message: String,
    },
    /// A launch with wrong geometry, arguments or sizes.
    #[error("launch of {kernel}: {message}")]
    Launch {
        /// Entry.
        kernel: String,
        /// What.
        message: String,
    },
    /// A host call with a wrong address, size or name.
    #[error("{0}")]
    Host(String),
    /// Execution ended early: an illegal access with its checker off, `trap`, a hang with its checker off.
    #[error("{kernel}, block {block:?}, warp {warp}, {file}:{line}: {message}")]
    Execution {
        /// Entry.
        kernel: String,
        /// CTA index.
        block: [u32; 3],
        /// Warp of the CTA.
        warp: u32,
        /// PTX file.
        file: String,
        /// PTX line.
        line: u32,
        /// What.
        message: String,
    },
}
