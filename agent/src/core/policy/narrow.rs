//! An overlay of the hub's over the board's policy. It can only narrow.

use super::Policy;
use dunlin_wire::job::Denial;
use dunlin_wire::overlay::Overlay;

impl Policy {
    /// What is left of it under `overlay`. A rule that is not left stays in its place and denies: were it taken out, a later
    /// one could take what this one would have denied.
    #[must_use]
    pub fn narrowed(&self, overlay: &Overlay) -> Policy {
        let mut policy = self.clone();
        let cap_ms = overlay.timeout_ms.unwrap_or(u64::MAX);
        for rule in &mut policy.rules {
            if !overlay.takes(&rule.id) {
                rule.unmet = Some(Denial::NotAllowlisted);
            }
            rule.timeout_ms_cap = rule.timeout_ms_cap.min(cap_ms);
            rule.output = rule.output.min(overlay.output.unwrap_or(u64::MAX));
        }
        policy.hooks.retain(|hook| overlay.takes(&format!("hook:{}", hook.name)));
        for hook in &mut policy.hooks {
            hook.timeout_ms = hook.timeout_ms.min(cap_ms);
        }
        if !overlay.takes("orchestrator") {
            policy.orchestrator = None;
        }
        let ceilings = &mut policy.ceilings;
        ceilings.timeout_ms = ceilings.timeout_ms.min(cap_ms);
        ceilings.jobs = ceilings.jobs.min(overlay.jobs.unwrap_or(u32::MAX));
        policy
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Request, decide};
    use super::*;

    const POLICY: &str = r#"
        schema = 1
        [signing]
        require = "never"
        [[rule]]
        id = "narrow"
        program = "/bin/x"
        args = [{ int = [0, 9] }]
        timeout = "1s"
        [[rule]]
        id = "wide"
        program = "/bin/x"
        args = [{ re = '[a-z0-9]*' }]
        timeout = "20s"
        timeout_max = "90s"
        output = "1KiB"
        [[rule]]
        id = "other"
        program = "/bin/y"
        env = { E = "1" }
    "#;

    /// Numbers of a fixed sequence (xorshift): which one failed can be told from `at`.
    struct Draw(u64);

    impl Draw {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }

        fn of<T: Clone>(&mut self, choices: &[T]) -> T {
            choices[self.below(choices.len() as u64) as usize].clone()
        }
    }

    #[test]
    fn whatever_an_overlay_says_it_allows_nothing_and_raises_nothing() {
        let policy = Policy::parse(&[("p".to_owned(), POLICY.to_owned())]).unwrap();
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        let (mut allowed, mut denied_by_it) = (0, 0);
        for at in 0..20_000 {
            let names = ["narrow", "wide", "other", "orchestrator", "none"];
            let some = |draw: &mut Draw| {
                names.iter().filter(|_| draw.below(2) == 0).map(|n| (*n).to_owned()).collect::<Vec<_>>()
            };
            let overlay = Overlay {
                version: 1,
                rules: (draw.below(3) > 0).then(|| some(&mut draw)),
                timeout_ms: draw.of(&[None, Some(1), Some(5_000), Some(u64::MAX)]),
                output: draw.of(&[None, Some(1), Some(u64::MAX)]),
                jobs: draw.of(&[None, Some(1), Some(u32::MAX)]),
            };
            let argv = [draw.of(&["/bin/x", "/bin/y"]).to_owned(), draw.of(&["5", "77", "ab"]).to_owned()];
            let argv = &argv[..if argv[0] == "/bin/y" { 1 } else { 2 }];
            let env = draw.of(&[vec![], vec![("E".to_owned(), "1".to_owned())]]);
            let timeout_ms = draw.of(&[None, Some(500), Some(10_000), Some(60_000), Some(100_000)]);
            let request = || Request { argv, env: &env, timeout_ms, ..Request::default() };
            let left = policy.narrowed(&overlay);
            assert!(left.ceilings.jobs <= policy.ceilings.jobs && left.ceilings.jobs > 0, "{at}");
            let (with, without) = (decide(&left, request()), decide(&policy, request()));
            match (with, without) {
                (Ok(with), Ok(without)) => {
                    allowed += 1;
                    assert_eq!(with.rule.id, without.rule.id, "{at}: {overlay:?}");
                    assert!(with.timeout_ms <= without.timeout_ms, "{at}: {overlay:?}");
                    assert!(overlay.timeout_ms.is_none_or(|ms| with.timeout_ms <= ms), "{at}");
                    assert!(with.rule.output <= without.rule.output, "{at}: {overlay:?}");
                }
                (Ok(_), Err(denial)) => panic!("{at}: {overlay:?} allows what is denied ({denial})"),
                (Err(_), Ok(_)) => denied_by_it += 1,
                (Err(_), Err(_)) => {}
            }
        }
        assert!(allowed > 1_000 && denied_by_it > 1_000, "{allowed} {denied_by_it}: it must test something");
    }
}
