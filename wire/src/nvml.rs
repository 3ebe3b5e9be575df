//! What the helper `dunlin-nvml` says to the agent that started it: [`Frame`]s as in [`crate::frame`], on its standard
//! output, one a look. A helper of another version writes another variant, which does not decode.

use crate::limits::NAME_MAX;
use crate::telemetry::at_most_slots;
use serde::{Deserialize, Serialize};

/// Largest frame, in bytes: 32 GPUs, each with some processes.
pub const FRAME_MAX: usize = 16 * 1024;
/// GPUs and instances of a look at most.
pub const GPUS_MAX: usize = 32;
/// Processes of a GPU that are told at most, those with most memory.
pub const PROCESSES_MAX: usize = 16;

/// What is written. Append only: the variant is the version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// Version 1.
    Look(Look),
}

/// One look at all GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Look {
    /// They answered, each for itself.
    Gpus(#[serde(deserialize_with = "at_most_slots")] Vec<Gpu>),
    /// The driver did not.
    Absent {
        /// Why, for people; at most [`NAME_MAX`] bytes count.
        why: String,
    },
}

/// A GPU, or an instance of one that is partitioned (MIG). What it did not answer is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// The driver's number of it: `0`; of an instance `0/1`.
    pub unit: String,
    /// As its maker calls it.
    pub name: Option<String>,
    /// Powered off by the kernel: it was not asked anything, as that would wake it.
    pub suspended: bool,
    /// Busy share, in permille.
    pub busy_permille: Option<u16>,
    /// Memory of its own that is in use, and all of it, in MiB.
    pub memory_mib: Option<(u64, u64)>,
    /// What it draws, in mW.
    pub power_mw: Option<u32>,
    /// Temperature, in degrees Celsius.
    pub temperature_c: Option<u16>,
    /// Where it slows down hard, in degrees Celsius.
    pub slowdown_c: Option<u16>,
    /// Clock of its cores, in MHz.
    pub clock_mhz: Option<u32>,
    /// Slowed down by heat or for want of power.
    pub throttled: Option<bool>,
    /// Process and the memory it uses of this GPU, in MiB.
    #[serde(deserialize_with = "at_most_slots")]
    pub processes: Vec<(u32, u64)>,
    /// Bits of [`metric`] that this GPU has ever answered.
    pub supported: u8,
}

/// Bits of [`Gpu::supported`]. Append only.
pub mod metric {
    /// Busy share.
    pub const BUSY: u8 = 1;
    /// Memory.
    pub const MEMORY: u8 = 1 << 1;
    /// Power.
    pub const POWER: u8 = 1 << 2;
    /// Temperature.
    pub const TEMPERATURE: u8 = 1 << 3;
    /// The temperature at which it slows down.
    pub const SLOWDOWN: u8 = 1 << 4;
    /// Clock.
    pub const CLOCK: u8 = 1 << 5;
    /// Throttling.
    pub const THROTTLED: u8 = 1 << 6;
    /// Processes.
    pub const PROCESSES: u8 = 1 << 7;
}

impl Look {
    /// The look with what no type bounds brought into bounds: shares over 1000, memory in use over all there is, and
    /// texts that are too long are unknown; what is too many is cut.
    pub fn bounded(mut self) -> Self {
        match &mut self {
            Look::Absent { why } => truncate(why),
            Look::Gpus(gpus) => {
                gpus.truncate(GPUS_MAX);
                for gpu in gpus {
                    truncate(&mut gpu.unit);
                    gpu.name.iter_mut().for_each(truncate);
                    gpu.busy_permille = gpu.busy_permille.filter(|share| *share <= 1000);
                    gpu.memory_mib = gpu.memory_mib.filter(|(used, all)| used <= all && *all > 0);
                    gpu.processes.truncate(PROCESSES_MAX);
                }
            }
        }
        self
    }
}

fn truncate(text: &mut String) {
    let end = (0..=NAME_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Decoder, FrameError, push};
    use proptest::prelude::*;

    #[test]
    fn a_look_round_trips_and_another_version_does_not() {
        let gpu =
            Gpu { unit: "0".into(), memory_mib: Some((1, 2)), processes: vec![(7, 9)], ..Gpu::default() };
        let frame = Frame::Look(Look::Gpus(vec![gpu]));
        let mut bytes = Vec::new();
        push(&mut bytes, &frame, FRAME_MAX).unwrap();
        let mut decoder = Decoder::new(FRAME_MAX);
        decoder.push(&bytes);
        assert_eq!(decoder.next::<Frame>(), Ok(Some(frame)));
        decoder.push(&[2, 1, 0]);
        assert_eq!(decoder.next::<Frame>(), Err(FrameError::Garbage));
    }

    #[test]
    fn nonsense_is_unknown() {
        let gpu = Gpu {
            name: Some("ä".repeat(NAME_MAX)),
            busy_permille: Some(1001),
            memory_mib: Some((3, 2)),
            processes: vec![(1, 1); 40],
            ..Gpu::default()
        };
        let Look::Gpus(gpus) = Look::Gpus(vec![gpu; 40]).bounded() else { panic!("gone") };
        assert_eq!(gpus.len(), GPUS_MAX);
        let Gpu { name, busy_permille, memory_mib, processes, .. } = &gpus[0];
        assert_eq!((name.as_ref().unwrap().len(), busy_permille, memory_mib), (NAME_MAX, &None, &None));
        assert_eq!(processes.len(), PROCESSES_MAX);
        let largest = Frame::Look(Look::Gpus(gpus));
        assert!(postcard::to_stdvec(&largest).unwrap().len() <= FRAME_MAX);
    }

    proptest! {
        #[test]
        fn decoding_anything_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            let mut decoder = Decoder::new(FRAME_MAX);
            decoder.push(&bytes);
            while let Ok(Some(Frame::Look(look))) = decoder.next::<Frame>() {
                let _ = look.bounded();
            }
        }
    }
}
