//! The fixture boards, for the tests that read them.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

/// A node of a tree.
#[derive(Clone, PartialEq)]
pub enum Node {
    File(Vec<u8>),
    Link(String),
    ReadFails,
}

/// The text of a fixture.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/tests/fixtures/telemetry").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '\\' => match chars.next().unwrap() {
                'n' => '\n',
                't' => '\t',
                '0' => '\0',
                '\\' => '\\',
                other => panic!("escape {other}"),
            },
            c => c,
        };
        bytes.extend(c.to_string().bytes());
    }
    bytes
}

/// The nodes of a board, with those of `step2/` apart.
pub fn nodes(board: &str) -> (BTreeMap<String, Node>, BTreeMap<String, Node>) {
    let mut first = BTreeMap::new();
    let mut second = BTreeMap::new();
    for line in fixture(&format!("{board}.tree")).lines() {
        let (kind, rest) = line.split_once(' ').unwrap();
        let (path, node) = match kind {
            "F" => rest.split_once('\t').map(|(path, text)| (path, Node::File(unescape(text)))).unwrap(),
            "L" => rest.split_once('\t').map(|(path, to)| (path, Node::Link(to.into()))).unwrap(),
            "E" => (rest, Node::ReadFails),
            other => panic!("node {other}"),
        };
        match path.strip_prefix("step2/") {
            Some(path) => second.insert(path.to_owned(), node),
            None => first.insert(path.to_owned(), node),
        };
    }
    if board == "orin-nano-t234-jp61" {
        let own = Node::File(b"0::/system.slice/agent.service\n".to_vec());
        first.insert("proc/self/cgroup".into(), own);
    }
    (first, second)
}

/// Makes one node.
pub fn put(root: &Path, path: &str, node: &Node) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    match node {
        Node::File(bytes) => std::fs::write(path, bytes).unwrap(),
        Node::Link(to) => std::os::unix::fs::symlink(to, path).unwrap(),
        Node::ReadFails => std::fs::create_dir(path).unwrap(),
    }
}

/// Makes all nodes.
pub fn expand(root: &Path, nodes: &BTreeMap<String, Node>) {
    nodes.iter().for_each(|(path, node)| put(root, path, node));
}
