//! Arguments as they may be written down: short, and without what looks like a secret.

/// Characters of one argument that are written.
const ARG_CHARS: usize = 120;
/// Arguments of one job that are written.
const ARGS_MAX: usize = 32;

/// An argv as it may be shown: cut, and without what looks like a secret.
pub fn arguments(argv: &[String]) -> Vec<String> {
    let mut hide = false;
    let mut shown = Vec::new();
    for arg in argv.iter().take(ARGS_MAX) {
        let secret = hide || looks_secret(arg);
        // What follows `--token` is one, what follows `--token=x` is not.
        hide = arg.starts_with('-') && !arg.contains('=') && names_secret(arg);
        let end = arg.char_indices().nth(ARG_CHARS).map_or(arg.len(), |(at, _)| at);
        shown.push(if secret && !hide { "[redacted]" } else { &arg[..end] }.to_owned());
    }
    if argv.len() > ARGS_MAX {
        shown.push(format!("[{} more]", argv.len() - ARGS_MAX));
    }
    shown
}

fn names_secret(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["secret", "token", "passw", "credential", "apikey", "api-key", "api_key", "auth", "bearer", "private"]
        .iter()
        .any(|word| text.contains(word))
}

/// It says so, or it is a long run of letters and digits such as keys are.
fn looks_secret(arg: &str) -> bool {
    let run = |part: &str| {
        let digits = part.bytes().filter(u8::is_ascii_digit).count();
        part.len() >= 20 && digits >= 3 && digits < part.len()
    };
    let parts = arg.split(|c: char| !c.is_ascii_alphanumeric() && !"+_-".contains(c));
    names_secret(arg) || parts.into_iter().any(run)
}
