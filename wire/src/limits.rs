//! Every bound in the system, in one place. A number that limits outside input lives here or it does not exist.

/// Largest frame on the control stream, in bytes. A grant carries argv and env, so this bounds a job.
pub const FRAME_MAX: usize = 512 * 1024;
/// Largest output chunk in one message, in bytes.
pub const CHUNK_MAX: usize = 16 * 1024;
/// Largest frame on an upload stream, in bytes: a chunk, or a report.
pub const UPLOAD_FRAME_MAX: usize = 64 * 1024;
/// Bytes of live output that a board may be ahead of who follows it, and the most that it takes as granted, per stream.
pub const TAIL_WINDOW: u64 = 64 * 1024;
/// Longest task id, in bytes.
pub const TASK_ID_MAX: usize = 64;
/// Longest node name, in bytes (a DNS label).
pub const NODE_NAME_MAX: usize = 63;
/// Longest tag, in bytes.
pub const TAG_MAX: usize = 64;
/// Most tags a node may carry or a task may require.
pub const TAGS_MAX: usize = 32;
/// Most elements of an argv.
pub const ARGV_MAX: usize = 256;
/// Longest single argument, in bytes.
pub const ARG_BYTES_MAX: usize = 32 * 1024;
/// Most environment entries of a job.
pub const ENV_MAX: usize = 64;
/// All argv and env bytes of a job together; a grant must fit one frame with room to spare.
pub const JOB_BYTES_MAX: usize = 128 * 1024;
/// Longest cwd or program path, in bytes (PATH_MAX).
pub const PATH_BYTES_MAX: usize = 4096;
/// Most claims, fences or unfinished attempts listed in one message.
pub const LIST_MAX: usize = 256;
/// Most capabilities a node announces.
pub const CAPABILITIES_MAX: usize = 64;
/// Frames that may come in early data: `Hello`, and claims.
pub const EARLY_MAX: usize = 4;
/// Tasks a node may hold at once (claimed + running): 1 to this.
pub const CONCURRENT_MAX: u32 = 100;
/// Attempts of a task: 1 to this.
pub const ATTEMPTS_MAX: u32 = 10;
/// Shortest timeout the API takes, in milliseconds.
pub const TIMEOUT_MS_MIN: u64 = 100;
/// Longest timeout the API takes, in milliseconds (24 h).
pub const TIMEOUT_MS_MAX: u64 = 24 * 3_600_000;
/// Lowest and highest task priority.
pub const PRIORITY_MIN: i16 = -10;
/// Highest task priority.
pub const PRIORITY_MAX: i16 = 100;
/// Longest an agent may be away with a `carryOn` job, in milliseconds (7 days).
pub const OFFLINE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// Longest time to live of a queued task, in milliseconds (30 days).
pub const TTL_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// Body of an API request, in bytes.
pub const BODY_MAX: usize = 1024 * 1024;
/// Most captured output per stream of one attempt that any hub keeps, in bytes (a board's policy is lower).
pub const OUTPUT_MAX: u64 = 64 * 1024 * 1024;
/// Hub addresses in one ticket.
pub const TICKET_ADDRS_MAX: usize = 8;
/// Longest textual ticket, in bytes.
pub const TICKET_TEXT_MAX: usize = 2048;
/// Longest address or other short text in a message, in bytes.
pub const TEXT_MAX: usize = 255;
/// Most requirements of a task besides its tags.
pub const REQUIRES_MAX: usize = 8;
/// Figures of one telemetry sample.
pub const SLOTS_MAX: usize = 128;
/// Longest name that a board gives a sensor, a rail or a filesystem, in bytes.
pub const NAME_MAX: usize = 64;
/// Figures of a sample in a datagram, which one packet must hold; more go on the control stream.
pub const DELTA_MAX: usize = 48;
/// Rows of one page of a listing.
pub const PAGE_MAX: usize = 500;
/// Longest join ticket life, in seconds (30 days).
pub const INVITE_TTL_S_MAX: u64 = 30 * 24 * 3600;
/// Largest signed job, in bytes: a job, and what is said about it.
pub const ENVELOPE_MAX: usize = JOB_BYTES_MAX + 64 * 1024;
/// Nodes, keys or tags that one signed job can be meant for.
pub const AUDIENCE_MAX: usize = 32;
/// Rules, users or tags of one signed job or certificate.
pub const SCOPE_MAX: usize = 32;
/// Longest time from a signed job's not-before to its expiry, in milliseconds (a year).
pub const SIGNED_LIFE_MS_MAX: u64 = 366 * 24 * 3_600_000;
/// Largest result of a bundle, in bytes: both streams, and what is said about them.
pub const BUNDLE_RESULT_MAX: usize = 2 * OUTPUT_MAX as usize + 64 * 1024;
/// Largest operator's certificate, in bytes.
pub const CERT_MAX: usize = 8 * 1024;
/// Largest set of keys, in bytes.
pub const KEYS_MAX: usize = 64 * 1024;
/// Certificates, and revoked keys, of one set.
pub const KEYS_LEN_MAX: usize = 256;
/// Signed jobs that a board remembers until they expire.
pub const REPLAYS_MAX: usize = 4096;
/// Steps of one orchestrator run.
pub const STEPS_MAX: usize = 16;
/// Longest text of a wake, in bytes.
pub const WAKE_MAX: usize = 4096;
/// Largest result that a job reports of itself, in bytes.
pub const RESULT_MAX: usize = 8 * 1024;
/// Largest count (tokens, cost) of one job: what a JSON number carries exactly.
pub const COUNT_MAX: u64 = 1 << 53;
/// Longest time that a hub can tell an agent to stay away, in milliseconds.
pub const RETRY_AFTER_MS_MAX: u64 = 10 * 60_000;
