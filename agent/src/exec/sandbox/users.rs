//! Users and groups by name or number, from /etc/passwd and /etc/group: the static agent has no other directories, and a
//! board's slots must not depend on any.

use std::fs;

/// Whom a process becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::exec) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// The user and groups of these names or numbers; `None` when one does not exist. A number without an entry is a user whose
/// group has the same number.
pub(in crate::exec) fn find(user: &str, groups: &[String]) -> Option<Identity> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    find_in(&read("/etc/passwd"), &read("/etc/group"), user, groups)
}

fn find_in(passwd: &str, group: &str, user: &str, groups: &[String]) -> Option<Identity> {
    let (uid, gid) = match entry(passwd, user) {
        Some(fields) => (number(fields.first()?)?, number(fields.get(1)?)?),
        None => number(user).map(|n| (n, n))?,
    };
    let one = |name: &String| match entry(group, name) {
        Some(fields) => number(fields.first()?),
        None => number(name),
    };
    Some(Identity { uid, gid, groups: groups.iter().map(one).collect::<Option<_>>()? })
}

/// The fields behind the password of the entry with this name or number.
fn entry<'a>(text: &'a str, who: &str) -> Option<Vec<&'a str>> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let rest: Vec<_> = fields.skip(1).collect();
        (name == who || rest.first() == Some(&who)).then_some(rest)
    })
}

/// -1 says "leave it" to setresuid(2).
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|n| *n != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\njob0:x:901:902::/:/bin/false\nbroken:x:zz:1\nshort\n";
        let group = "root:x:0:\nvideo:x:44:job0\n";
        for (user, groups, want) in [
            ("job0", vec![], Some((901, 902, vec![]))),
            ("901", vec!["video"], Some((901, 902, vec![44]))),
            ("65001", vec!["7", "44"], Some((65001, 65001, vec![7, 44]))),
            ("root", vec![], Some((0, 0, vec![]))),
            ("broken", vec![], None),
            ("short", vec![], None),
            ("nobody", vec![], None),
            ("job0", vec!["nogroup"], None),
            ("4294967295", vec![], None),
            ("-1", vec![], None),
        ] {
            let groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
            let found = find_in(passwd, group, user, &groups).map(|i| (i.uid, i.gid, i.groups));
            assert_eq!(found, want, "{user}");
        }
    }
}
