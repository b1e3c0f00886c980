//! Rendezvous hashing: every node computes the same owners of a digest from the same member list,
//! and a member that leaves moves only what it owned.
//!
//! Each member draws a score from (digest, name); the highest scores own. With weights the score
//! is `-weight / ln(u)` for a uniform `u`, which gives each member a share in proportion to its
//! weight (Mosko, "Weighted rendezvous hashing", and Schindelhauer and Schomaker, "Weighted
//! distributed hash tables", SPAA 2005).

use std::collections::BTreeSet;

use sha2::{Digest as _, Sha256};

use crate::blob::digest::Digest;
use crate::zone::Zone;

/// One member of a ring.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// A name that stays when the member moves to another address: draws the scores.
    pub name: String,
    /// Its share relative to the others; 1.0 for equals. Zero or less owns nothing.
    pub weight: f64,
    /// Where it stands: what is owned by several is owned in different zones as far as there are any.
    pub zone: Option<Zone>,
}

impl Member {
    /// A member of weight 1.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            weight: 1.0,
            zone: None,
        }
    }
}

/// The members of a ring, in no particular order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ring {
    members: Vec<Member>,
}

impl Ring {
    /// A ring of these members; of two with one name the first counts.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Self {
        let mut unique: Vec<Member> = Vec::new();
        for member in members {
            if unique.iter().all(|known| known.name != member.name) {
                unique.push(member);
            }
        }
        Self { members: unique }
    }

    /// The members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// All members with a share, the first owner of `digest` in front. The first `n` are its `n`
    /// owners; the rest is the order in which to fall through.
    pub fn ranked(&self, digest: &Digest) -> Vec<&Member> {
        let mut scored: Vec<_> = self
            .members
            .iter()
            .filter(|member| member.weight > 0.0)
            .map(|member| (score(digest, member), member))
            .collect();
        scored.sort_by(|(a, first), (b, second)| {
            b.total_cmp(a).then_with(|| first.name.cmp(&second.name))
        });
        scored.into_iter().map(|(_, member)| member).collect()
    }

    /// The names of the `replicas` owners of `digest`, the first one in front.
    pub fn owners(&self, digest: &Digest, replicas: usize) -> Vec<&str> {
        let order = self.order(digest, replicas);
        let owners = order.into_iter().take(replicas);
        owners.map(|member| member.name.as_str()).collect()
    }

    /// All members with a share, the `replicas` owners of `digest` in front: of the ranked those that
    /// are the first of their zone, and then others while there are too few. Who has no zone stands
    /// alone. Behind the owners the rest, as ranked.
    pub fn order(&self, digest: &Digest, replicas: usize) -> Vec<&Member> {
        let (mut owners, mut rest) = (Vec::new(), Vec::new());
        let mut zones = BTreeSet::new();
        for member in self.ranked(digest) {
            let is_new = member.zone.as_ref().is_none_or(|zone| zones.insert(zone));
            match is_new && owners.len() < replicas {
                true => owners.push(member),
                false => rest.push(member),
            }
        }
        owners.extend(rest);
        owners
    }
}

fn score(digest: &Digest, member: &Member) -> f64 {
    let mut hash = Sha256::new();
    hash.update(digest.as_bytes());
    hash.update(member.name.as_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    let draw = u64::from_be_bytes(hash[..8].try_into().expect("8 of 32 bytes"));
    // 53 bits are what a float holds; the half keeps the draw off 0 and 1.
    let uniform = ((draw >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -member.weight / uniform.ln()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ring(names: &[&str]) -> Ring {
        Ring::new(names.iter().map(|name| Member::new(*name)))
    }

    fn digests() -> impl Iterator<Item = Digest> {
        (0..4000_u32).map(|i| Digest::of(&i.to_be_bytes()))
    }

    #[test]
    fn order_of_the_list_does_not_matter() {
        let (one, other) = (ring(&["a", "b", "c"]), ring(&["c", "a", "b"]));
        assert!(digests().all(|digest| one.owners(&digest, 3) == other.owners(&digest, 3)));
    }

    #[test]
    fn a_member_that_leaves_moves_only_what_it_owned() {
        let (before, after) = (ring(&["a", "b", "c", "d"]), ring(&["a", "b", "c"]));
        for digest in digests() {
            let old = before.owners(&digest, 2);
            let new = after.owners(&digest, 2);
            assert!(
                old.iter()
                    .filter(|name| **name != "d")
                    .all(|name| new.contains(name))
            );
        }
    }

    #[test]
    fn shares_follow_weights() {
        let mut members = ring(&["a", "b", "c"]).members().to_vec();
        members[2].weight = 2.0;
        members.push(Member {
            weight: 0.0,
            ..Member::new("drained")
        });
        let ring = Ring::new(members);
        let owned = digests()
            .filter(|digest| ring.owners(digest, 1) == ["c"])
            .count();
        // Half of 4000, and five standard deviations (5 × sqrt(4000 / 4) ≈ 158) around it.
        assert!((1842..2158).contains(&owned), "{owned}");
        assert!(digests().all(|digest| ring.ranked(&digest).len() == 3));
    }

    fn zoned(zones: &[(&str, &str)]) -> Ring {
        Ring::new(zones.iter().map(|(name, zone)| Member {
            zone: Some(zone.parse().unwrap()),
            ..Member::new(*name)
        }))
    }

    #[test]
    fn owners_are_in_different_zones_as_far_as_there_are_any() {
        let ring = zoned(&[("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"), ("e", "z")]);
        let mut shares = BTreeMap::<&str, usize>::new();
        for digest in digests() {
            let owners = ring.owners(&digest, 3);
            assert_eq!(owners.len(), 3);
            assert!(owners.contains(&"d") && owners.contains(&"e"), "{owners:?}");
            owners
                .into_iter()
                .for_each(|name| *shares.entry(name).or_default() += 1);
            // Four of three zones: two of them are together.
            assert_eq!(ring.owners(&digest, 4).len(), 4);
            assert_eq!(ring.order(&digest, 3).len(), 5);
            // The first one is who would be it without zones.
            let without = Ring::new(["a", "b", "c", "d", "e"].map(Member::new));
            assert_eq!(ring.owners(&digest, 1), without.owners(&digest, 1));
        }
        // A third of 4000 each, and five standard deviations (5 × sqrt(4000 × 2 / 9) ≈ 149).
        assert!(
            ["a", "b", "c"]
                .iter()
                .all(|it| (1184..1483).contains(&shares[it])),
            "{shares:?}"
        );
    }

    #[test]
    fn a_zone_that_goes_moves_only_what_it_owned() {
        let before = zoned(&[
            ("a", "x"),
            ("b", "x"),
            ("c", "y"),
            ("d", "y"),
            ("e", "z"),
            ("f", "z"),
        ]);
        let after = zoned(&[("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]);
        for digest in digests() {
            let (old, new) = (before.owners(&digest, 2), after.owners(&digest, 2));
            let stay = old.iter().filter(|name| !["e", "f"].contains(name));
            assert!(
                stay.clone().all(|name| new.contains(name)),
                "{old:?} {new:?}"
            );
        }
    }

    #[test]
    fn a_name_counts_once() {
        assert_eq!(ring(&["a", "a", "b"]).members().len(), 2);
        assert!(ring(&[]).owners(&Digest::of(b""), 3).is_empty());
    }
}
