//! Whom of the members that were drawn to hand out, and in which order.

use std::cmp::Reverse;

/// What is asked of [`super::peers::Swarm::choose`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// The most members to choose.
    pub(super) want: usize,
    /// The most to draw and choose from, in the whole swarm and in the asker's zone each.
    pub(super) sample: usize,
    /// Whether to look at links; members at random otherwise.
    pub(super) balanced: bool,
    /// The share of near members, up to 1; at 0 zones play no role.
    pub(super) near_share: f64,
    /// How many links a member should have.
    pub(super) degree: u32,
    /// Whether members that have more of the blob come first.
    pub(super) needy: bool,
}

/// A member that was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Where it is in the swarm.
    pub(super) place: usize,
    /// Whether it is in the asker's zone.
    pub(super) near: bool,
    /// How many links it is expected to have.
    pub(super) links: u32,
    /// How much of the blob it has, in thousandths.
    pub(super) done: u32,
}

impl Wish {
    /// How many to draw of the `members` of the asker's zone: half of them, as far as that is
    /// enough. Whoever has just come has the fewest links, so that to choose from a whole zone is
    /// to choose its latest, and then the zone is a chain in the order of arrival. In racks of 40
    /// that fill at once, half of the zone makes paths of 2.6 links inside a rack, the whole zone
    /// paths of 3.6.
    pub(super) fn sample_of_zone(&self, members: usize) -> usize {
        let enough = self.want.saturating_add(1);
        members.div_ceil(2).max(enough).min(self.sample)
    }

    /// The places to hand out, given members of the asker's zone and members of the whole swarm,
    /// each in random order. Near and far take turns, so that whoever dials only the first few has
    /// the share too. When one kind runs out the other fills in.
    pub(super) fn choose(&self, near: Vec<Candidate>, anywhere: Vec<Candidate>) -> Vec<usize> {
        let many = self.many_links(&anywhere);
        let far = anywhere.into_iter().filter(|it| !it.near).collect();
        let mut near = self.ranked(near).into_iter().peekable();
        let mut far = self.ranked(far).into_iter().peekable();
        let mut chosen = Vec::with_capacity(self.want.min(near.len() + far.len()));
        while chosen.len() < self.want {
            let take_near = match (near.peek(), far.peek()) {
                (Some(_), Some(_)) if self.is_near(chosen.len()) => true,
                (Some(near), Some(far)) => far.links >= many && near.links < far.links,
                (near, _) => near.is_some(),
            };
            let next = if take_near { near.next() } else { far.next() };
            let Some(next) = next else {
                break;
            };
            chosen.push(next.place);
        }
        chosen
    }

    /// From how many links on a far member leaves its turn to a near one that has fewer: a quarter
    /// more than is usual, and no less than it should have. Otherwise the few hosts outside of a
    /// large zone would be everybody's choice. Near members need no such bound, because nobody has
    /// more links in a zone than there are others in it.
    fn many_links(&self, sample: &[Candidate]) -> u32 {
        if !self.balanced {
            return u32::MAX;
        }
        let all: u64 = sample.iter().map(|it| u64::from(it.links)).sum();
        let usual = all / (sample.len() as u64).max(1);
        let many = u32::try_from(usual + usual / 4).unwrap_or(u32::MAX);
        many.max(self.degree)
    }

    /// Those with the fewest links first. For a needy asker those that have most of the blob, and
    /// last whoever has so many links that it would turn the asker away.
    fn ranked(&self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        let full = self.degree.saturating_add(self.degree / 2);
        match (self.balanced, self.needy) {
            (false, _) => {}
            (true, false) => candidates.sort_by_key(|it| it.links),
            (true, true) => {
                candidates.sort_by_key(|it| (it.links >= full, Reverse(it.done), it.links));
            }
        }
        candidates
    }

    /// Whether it is a near member's turn at `index` of the list: of its first `n` entries the
    /// share of `n` is near, rounded.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a list is short and a share not negative"
    )]
    fn is_near(&self, index: usize) -> bool {
        let near = |entries: usize| (entries as f64 * self.near_share).round() as usize;
        near(index + 1) > near(index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const WISH: Wish = Wish {
        want: 12,
        sample: 64,
        balanced: true,
        near_share: 2.0 / 3.0,
        degree: 12,
        needy: false,
    };

    /// Near members have places below 100, far ones from there on.
    fn members(near: bool, links: &[u32]) -> Vec<Candidate> {
        let first = if near { 0 } else { 100 };
        let member = |(place, links): (usize, &u32)| Candidate {
            place: first + place,
            near,
            links: *links,
            done: 0,
        };
        links.iter().enumerate().map(member).collect()
    }

    fn choose(wish: Wish, near: &[u32], far: &[u32]) -> Vec<usize> {
        let near = members(true, near);
        // Who is near is drawn from the whole swarm as well.
        let anywhere = [near.clone(), members(false, far)].concat();
        wish.choose(near, anywhere)
    }

    #[test]
    fn near_and_far_take_turns_by_the_fewest_links() {
        let chosen = choose(WISH, &[3, 0, 2, 1, 9, 9], &[1, 0, 9]);
        assert_eq!(chosen, [1, 101, 3, 2, 100, 0, 4, 102, 5]);
        let four_of_five = Wish {
            near_share: 0.8,
            want: 5,
            ..WISH
        };
        assert_eq!(
            choose(four_of_five, &[0, 1, 2, 3, 4], &[0]),
            [0, 1, 100, 2, 3]
        );
    }

    #[test]
    fn when_one_kind_runs_out_the_other_fills_in() {
        assert_eq!(choose(WISH, &[0], &[0, 1, 2]), [0, 100, 101, 102]);
        assert_eq!(choose(WISH, &[0, 1, 2], &[0]), [0, 100, 1, 2]);
        assert_eq!(choose(WISH, &[], &[1, 0]), [101, 100]);
        assert_eq!(choose(WISH, &[1, 0], &[]), [1, 0]);
        assert!(choose(WISH, &[], &[]).is_empty());
    }

    #[test]
    fn a_far_member_with_many_links_leaves_its_turn_and_a_near_one_does_not() {
        let near = [6; 12];
        assert_eq!(choose(WISH, &near, &[11])[..3], [0, 100, 1]);
        assert_eq!(choose(WISH, &near, &[12])[..3], [0, 1, 2]);
        // Where many is usual, or where the near ones have more, the far one keeps it.
        assert_eq!(choose(WISH, &[16; 12], &[18])[..3], [0, 100, 1]);
        assert_eq!(choose(WISH, &[20; 3], &[20])[..3], [0, 100, 1]);
        assert_eq!(choose(WISH, &[30; 3], &[6; 12])[..3], [0, 100, 1]);
        let at_random = Wish {
            balanced: false,
            ..WISH
        };
        assert_eq!(choose(at_random, &[7, 6], &[40])[..3], [0, 100, 1]);
    }

    #[test]
    fn a_needy_host_gets_those_who_have_most_unless_they_are_full() {
        let needy = Wish {
            needy: true,
            near_share: 0.0,
            ..WISH
        };
        let mut far = members(false, &[2, 5, 18, 1, 4]);
        for (member, done) in far.iter_mut().zip([10, 1000, 1000, 10, 900]) {
            member.done = done;
        }
        assert_eq!(needy.choose(Vec::new(), far), [101, 104, 103, 100, 102]);
    }

    #[test]
    fn a_zone_is_drawn_by_half_unless_that_is_too_few() {
        let drawn = [3, 20, 40, 1000].map(|members| WISH.sample_of_zone(members));
        assert_eq!(drawn, [13, 13, 20, 64]);
    }

    proptest! {
        #[test]
        fn the_first_of_the_list_have_the_share(near in prop::collection::vec(0_u32..12, 30), far in prop::collection::vec(0_u32..12, 30), share in 0.0..=1.0_f64) {
            let chosen = choose(Wish { near_share: share, want: 30, ..WISH }, &near, &far);
            prop_assert_eq!(chosen.len(), 30);
            for n in 1..30 {
                let near = chosen[..n].iter().filter(|place| **place < 100).count();
                prop_assert!((near as f64 - share * n as f64).abs() <= 0.5 + 1e-9, "{} of {}", near, n);
            }
        }

        #[test]
        fn as_many_as_wanted_or_all_and_nobody_twice(near in prop::collection::vec(0_u32..40, 0..30), far in prop::collection::vec(0_u32..40, 0..30), want in 0_usize..40, balanced: bool, needy: bool) {
            let chosen = choose(Wish { want, balanced, needy, ..WISH }, &near, &far);
            prop_assert_eq!(chosen.len(), want.min(near.len() + far.len()));
            prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        }
    }
}
