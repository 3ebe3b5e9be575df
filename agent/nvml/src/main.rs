//! `dunlin-nvml`: writes what NVIDIA's driver says of its GPUs to standard output, a frame ([`dunlin_wire::nvml`]) a
//! look, until standard input ends or nobody reads.
//!
//! The agent starts it, and kills it when it hangs: a static agent cannot load a library, and a driver that crashes or
//! leaks stays out of it. Deliberately absent: anything that changes a GPU, a clock, a log.

mod class;
mod eyes;
mod pci;
#[cfg(test)]
mod tests;

use dunlin_wire::frame;
use dunlin_wire::nvml::{FRAME_MAX, Frame};
use eyes::{Eyes, Gone};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const HELP: &str = "\
usage: dunlin-nvml [--lib PATH] [--sysroot DIR] [--tegra] [--every-ms N] [--text]

Writes what NVIDIA's driver says of its GPUs to standard output, until standard input ends.

  --lib PATH     the driver's library (libnvidia-ml.so.1)
  --sysroot DIR  where /sys is looked for (/)
  --tegra        on a Tegra: nothing is said that is not true there, as memory and clocks
  --every-ms N   time between looks, 10 to 60000 (2000)
  --text         one look, for people

exit codes: 0 nobody reads any more, 64 usage, 69 no library, 75 start me again (the driver is another now)
";

struct Options {
    eyes: Eyes,
    every: Duration,
    text: bool,
}

fn main() -> ExitCode {
    let Options { mut eyes, every, text } = match options(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("dunlin-nvml: {error}; see --help");
            return ExitCode::from(64);
        }
    };
    // The other end is never used: it goes when standard input ends, which a channel can wait for with a bound.
    let (alive, ended) = channel::<()>();
    if !text {
        std::thread::spawn(move || {
            let _alive = alive;
            let mut bytes = [0; 64];
            while std::io::stdin().read(&mut bytes).is_ok_and(|n| n > 0) {}
        });
    }
    loop {
        let (look, gone) = match eyes.look(every) {
            Ok(look) => (look, None),
            Err((look, gone)) => (look, Some(gone)),
        };
        let look = look.bounded();
        if text {
            println!("{look:#?}");
        } else if !write(&Frame::Look(look)) {
            return ExitCode::SUCCESS;
        }
        match gone {
            Some(Gone::NoLibrary) => return ExitCode::from(69),
            Some(Gone::Mismatch) => return ExitCode::from(75),
            None if text => return ExitCode::SUCCESS,
            None => {}
        }
        if ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return ExitCode::SUCCESS;
        }
    }
}

/// `false` when nobody reads.
fn write(frame: &Frame) -> bool {
    let mut bytes = Vec::new();
    let mut out = std::io::stdout().lock();
    frame::push(&mut bytes, frame, FRAME_MAX).is_ok()
        && out.write_all(&bytes).and_then(|()| out.flush()).is_ok()
}

/// `None` when help is wanted.
fn options(args: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
    let mut options = Options { eyes: Eyes::default(), every: Duration::from_secs(2), text: false };
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        let name = arg.to_string_lossy().into_owned();
        let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--lib" => options.eyes.lib = Some(value()?),
            "--sysroot" => options.eyes.root = value()?.into(),
            "--tegra" => options.eyes.tegra = true,
            "--text" => options.text = true,
            "--every-ms" => {
                let ms = value()?.to_str().and_then(|text| text.parse().ok());
                let ms = ms.filter(|ms| (10..=60_000).contains(ms));
                options.every = Duration::from_millis(ms.ok_or("--every-ms must be 10 to 60000")?);
            }
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(Some(options))
}
