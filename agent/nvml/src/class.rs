//! What an error of NVML's means for what is done next.

use nvml_wrapper::error::NvmlError;

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// This GPU never answers this.
    Permanent,
    /// Not this time.
    Skip,
    /// The driver is gone, or this GPU is: begin anew, after a while.
    Begin,
    /// The driver was replaced under the library: only another process can load the new one.
    Restart,
}

/// The class of `error`. What is not listed is skipped: it may answer the next time.
pub fn of(error: &NvmlError) -> Class {
    use NvmlError::*;
    match error {
        NotSupported | FailedToLoadSymbol(_) | FunctionNotFound | InvalidArg => Class::Permanent,
        Uninitialized | DriverNotLoaded | GpuLost | ResetRequired | IrqIssue | OperatingSystem => {
            Class::Begin
        }
        LibRmVersionMismatch => Class::Restart,
        _ => Class::Skip,
    }
}
