//! Mosquitto beside the agent: MQTT 3.1.1 at QoS 1 over TLS 1.3, on a link of its own of the same kind.

use super::passed;
use crate::peers::find;
use crate::peers::mosquitto::Mosquitto;
use crate::site::Site;
use crate::wan::{Link, Wan};
use anyhow::{Context, Result};

/// The package, which is also its name in tables.
const NAME: &str = "mosquitto";

/// Starts one; `None`, and a line that says how to have it, where it is not installed.
pub(super) fn start(link: Link) -> Result<Option<Mosquitto>> {
    if find(NAME).is_none() {
        eprintln!("link: no {NAME}; `apt-get install {NAME}` has it");
        return Ok(None);
    }
    Mosquitto::start(Site::new(Some(link))?).map(Some)
}

/// What to say of a run.
pub(super) fn note(broker: Option<&Mosquitto>) -> String {
    match broker {
        Some(_) => format!(
            "{NAME} {}: QoS 1, TLS 1.3 to the board, no persistence, on a link of its own of the same kind",
            crate::site::version(NAME)
        ),
        None => format!("{NAME} was not in the run: it is not installed"),
    }
}

/// Its link.
pub(super) fn wan(broker: &Mosquitto) -> Result<&Wan> {
    broker.server.site.wan().context("a broker without a link")
}

/// What passed on its link so far, as [`passed`] counts.
pub(super) fn bytes(broker: &Mosquitto) -> Result<[u64; 3]> {
    Ok(passed(wan(broker)?))
}
