//! GPUs that only NVIDIA's driver knows: discrete ones, and Thor's. A static agent cannot load the driver's library, so a
//! helper does, `dunlin-nvml`; without it, or where it does not work, `nvidia-smi` is asked now and then.
//!
//! Neither is ever waited for. One that hangs, ends or writes nonsense is killed and tried again later, and its GPUs are
//! unknown meanwhile.

use super::gpu;
use super::program::Program;
use super::scan::Scan;
use super::smi;
use super::sysroot::Sysroot;
use crate::clock::BootMs;
use dunlin_wire::frame::Decoder;
use dunlin_wire::nvml::{FRAME_MAX, Frame, Gpu, Look};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// A helper that has written nothing for so long hangs, in milliseconds. It writes every 2 s.
const SILENCE_MS: BootMs = 15_000;
/// For how long figures of the helper, and of nvidia-smi, are those of now, in milliseconds.
const FRESH_MS: (BootMs, BootMs) = (10_000, 45_000);
/// Between two times that nvidia-smi is asked, in milliseconds: it costs a good part of a second.
const SMI_MS: BootMs = 30_000;
/// Shortest and longest wait before a helper is started again, in milliseconds.
const WAIT_MS: (BootMs, BootMs) = (5_000, 600_000);
/// How often it is looked whether there is a GPU of NVIDIA's, in milliseconds.
const PRESENT_MS: BootMs = 60_000;
/// Bytes that nvidia-smi may write.
const SMI_MAX: usize = 64 * 1024;
/// Why nothing is known yet.
const SILENT: &str = "dunlin-nvml was started and has said nothing yet";

/// Where the programs are.
#[derive(Debug, Clone, Default)]
pub struct Programs {
    /// The helper.
    pub helper: PathBuf,
    /// NVIDIA's own program.
    pub smi: PathBuf,
    /// What the helper is told besides.
    pub args: Vec<OsString>,
}

impl Programs {
    /// The helper beside this program, and what the driver installs.
    pub fn installed() -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        Self {
            helper: own.with_file_name("dunlin-nvml"),
            smi: "/usr/bin/nvidia-smi".into(),
            args: Vec::new(),
        }
    }
}

/// Who is being asked.
#[derive(Debug)]
enum Asked {
    Nobody,
    Helper {
        program: Program,
        frames: Decoder,
        heard: BootMs,
    },
    Smi {
        program: Program,
        text: Vec<u8>,
        since: BootMs,
    },
    /// Killed, and not gone yet: nothing else is started beside it.
    Ending(Program),
}

/// The GPUs of NVIDIA's driver.
#[derive(Debug)]
pub struct Nvml {
    programs: Programs,
    asked: Asked,
    present: Option<(BootMs, bool)>,
    helper_at: BootMs,
    smi_at: BootMs,
    failures: u32,
    // Who said it, until when it holds, and what.
    known: Option<(&'static str, BootMs, Vec<Gpu>)>,
    why: String,
}

impl Nvml {
    /// Asks these programs.
    pub fn new(programs: Programs) -> Self {
        Self {
            programs,
            asked: Asked::Nobody,
            present: None,
            helper_at: 0,
            smi_at: 0,
            failures: 0,
            known: None,
            why: String::new(),
        }
    }

    /// Is there a device that the driver would know?
    pub fn is_present(&mut self, scan: &Scan, now: BootMs) -> bool {
        if let Some((_, present)) = self.present.filter(|(at, _)| now < at + PRESENT_MS) {
            return present;
        }
        let present = scan.root().has("dev/nvidiactl") || gpu::nvidia(scan).is_some();
        self.present = Some((now, present));
        if !present {
            self.stop();
            self.known = None;
        }
        present
    }

    /// The GPUs and who said so, as far as anybody did lately.
    ///
    /// # Errors
    /// Why nothing is known, for people.
    pub fn look(&mut self, root: &Sysroot, tegra: bool, now: BootMs) -> Result<(&'static str, &[Gpu]), &str> {
        self.listen(now);
        if matches!(self.asked, Asked::Nobody) {
            self.ask(root, tegra, now);
        }
        match &self.known {
            Some((by, until, gpus)) if now <= *until => Ok((by, gpus)),
            _ => Err(&self.why),
        }
    }

    fn listen(&mut self, now: BootMs) {
        match &mut self.asked {
            Asked::Nobody => {}
            Asked::Ending(program) => {
                if program.end() {
                    self.asked = Asked::Nobody;
                }
            }
            Asked::Helper { program, frames, heard } => {
                let (bytes, ended) = program.read();
                frames.push(&bytes);
                let garbage = loop {
                    match frames.next() {
                        Ok(Some(Frame::Look(look))) => {
                            *heard = now;
                            match look.bounded() {
                                Look::Gpus(gpus) => {
                                    self.failures = 0;
                                    self.known = Some(("nvml", now + FRESH_MS.0, gpus));
                                }
                                Look::Absent { why } => {
                                    self.known = None;
                                    self.why = why;
                                }
                            }
                        }
                        Ok(None) => break false,
                        Err(_) => break true,
                    }
                };
                if garbage {
                    self.fail("dunlin-nvml is of another version, or wrote nonsense", now);
                } else if ended {
                    // What it said last tells more than that it ended.
                    let why = std::mem::take(&mut self.why);
                    self.fail(if why == SILENT { "dunlin-nvml ended" } else { &why }, now);
                } else if now > *heard + SILENCE_MS {
                    self.fail("dunlin-nvml hung", now);
                }
            }
            Asked::Smi { program, text, since } => {
                let (bytes, ended) = program.read();
                text.extend(bytes);
                if ended {
                    let found = std::str::from_utf8(text).ok().and_then(|text| smi::parse(text).ok());
                    match found {
                        Some(gpus) => self.known = Some(("nvidia-smi", now + FRESH_MS.1, gpus)),
                        None => self.why = "nvidia-smi told no GPU".into(),
                    }
                    self.stop();
                } else if text.len() > SMI_MAX || now > *since + SILENCE_MS {
                    self.why = "nvidia-smi hung".into();
                    self.stop();
                }
            }
        }
    }

    fn ask(&mut self, root: &Sysroot, tegra: bool, now: BootMs) {
        if now >= self.helper_at {
            let mut command = Command::new(&self.programs.helper);
            command.args(&self.programs.args);
            if tegra {
                command.arg("--tegra");
            }
            match Program::start(command) {
                Ok(program) => {
                    self.why = SILENT.to_owned();
                    let frames = Decoder::new(FRAME_MAX);
                    self.asked = Asked::Helper { program, frames, heard: now };
                    return;
                }
                Err(error) => {
                    self.fail(&format!("{}: {error}", self.programs.helper.display()), now);
                    if error.kind() == std::io::ErrorKind::NotFound {
                        self.helper_at = now + WAIT_MS.1;
                    }
                }
            }
        }
        // It would wake a GPU that is powered off, and says nothing of a Tegra that is true.
        if now >= self.smi_at && !tegra && !gpu::nvidia_suspended(root) {
            self.smi_at = now + SMI_MS;
            let mut command = Command::new(&self.programs.smi);
            command.args(smi::ARGS);
            if let Ok(program) = Program::start(command) {
                self.asked = Asked::Smi { program, text: Vec::new(), since: now };
            }
        }
    }

    fn fail(&mut self, why: &str, now: BootMs) {
        self.why = why.to_owned();
        self.known = None;
        self.helper_at = now + (WAIT_MS.0 << self.failures.min(10)).min(WAIT_MS.1);
        self.failures += 1;
        self.stop();
    }

    fn stop(&mut self) {
        if let Asked::Helper { mut program, .. } | Asked::Smi { mut program, .. } | Asked::Ending(mut program) =
            std::mem::replace(&mut self.asked, Asked::Nobody)
            && !program.end()
        {
            self.asked = Asked::Ending(program);
        }
    }
}
