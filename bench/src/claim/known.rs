//! The systems that can stand beside each other.

use super::Options;
use super::dunlin::Dunlin;
use crate::peers::System;
use crate::peers::beanstalkd::Beanstalk;
use crate::peers::mosquitto::Mosquitto;
use crate::peers::nats::Nats;
use crate::peers::postgres::Postgres;
use crate::peers::rabbitmq::Rabbit;
use crate::peers::redis::Redis;
use crate::peers::ssh::Ssh;
use crate::site::Site;
use anyhow::Result;

type Make = fn(&Options, Site) -> Result<Box<dyn System>>;

/// What is known of a system without starting it.
pub(super) struct Known {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What starts it.
    pub(super) make: Make,
    /// A program of it; `None` for Dunlin itself.
    pub(super) program: Option<&'static str>,
    /// The Debian package that has it.
    pub(super) package: &'static str,
    /// Whether it has a throughput: ssh has no queue.
    pub(super) queues: bool,
}

/// Another build of Dunlin's hub, measured in the same run to see what a change does.
pub(super) const BEFORE: &str = "dunlin-before";

/// Every system, Dunlin first.
pub(super) static KNOWN: [Known; 10] = [
    Known {
        name: "dunlin",
        make: |o, s| Ok(Box::new(Dunlin::start(o.bin.as_deref(), s, false)?)),
        program: None,
        package: "",
        queues: true,
    },
    Known {
        name: "dunlin-agent",
        make: |o, s| Ok(Box::new(Dunlin::start(o.bin.as_deref(), s, true)?)),
        program: None,
        package: "",
        queues: true,
    },
    Known {
        name: BEFORE,
        make: |o, s| Ok(Box::new(Dunlin::start(o.before.as_deref(), s, false)?)),
        program: None,
        package: "",
        queues: true,
    },
    Known {
        name: "redis",
        make: |_, s| Ok(Box::new(Redis::start(s)?)),
        program: Some("redis-server"),
        package: "redis-server",
        queues: true,
    },
    Known {
        name: "rabbitmq",
        make: |_, s| Ok(Box::new(Rabbit::start(s)?)),
        program: Some("rabbitmq-server"),
        package: "rabbitmq-server",
        queues: true,
    },
    Known {
        name: "nats",
        make: |_, s| Ok(Box::new(Nats::start(s)?)),
        program: Some("nats-server"),
        package: "nats-server",
        queues: true,
    },
    Known {
        name: "postgres",
        make: |_, s| Ok(Box::new(Postgres::start(s)?)),
        program: Some("postgres"),
        package: "postgresql",
        queues: true,
    },
    Known {
        name: "beanstalkd",
        make: |_, s| Ok(Box::new(Beanstalk::start(s)?)),
        program: Some("beanstalkd"),
        package: "beanstalkd",
        queues: true,
    },
    Known {
        name: "mosquitto",
        make: |_, s| Ok(Box::new(Mosquitto::start(s)?)),
        program: Some("mosquitto"),
        package: "mosquitto",
        queues: false,
    },
    Known {
        name: "ssh",
        make: |_, s| Ok(Box::new(Ssh::start(s)?)),
        program: Some("ssh"),
        package: "openssh-server",
        queues: false,
    },
];
