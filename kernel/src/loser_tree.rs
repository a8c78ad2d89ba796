//! A loser tree: the smallest of k inputs at the root, one comparison a level to replace it.
//!
//! ```text
//!            nodes[0] = winner
//!                 |
//!            nodes[1]              every inner node holds the loser of the match played there,
//!           /        \             the winner went up
//!      nodes[2]    nodes[3]
//!       /    \      /    \
//!      i0    i1    i2    i3        input i is leaf k + i; its first match is node (k + i) / 2
//! ```
//!
//! Players are (window, input). Windows decide nearly always, without a branch; equal windows ask
//! the caller, who knows the whole keys, the input numbers and which inputs have ended. Works for
//! any k, not only powers of two.

use std::hint::select_unpredictable;

/// One player.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Player {
    window: u64,
    input: u32,
}

/// The tree. `tie(a, b)` of its methods says whether input `a` comes before input `b`; it is asked
/// when their windows are equal only, and must be a total order together with them.
#[derive(Clone, Debug)]
pub struct LoserTree {
    nodes: Vec<Player>,
}

impl LoserTree {
    /// A tree over one window for each input.
    pub fn new(windows: &[u64], mut tie: impl FnMut(u32, u32) -> bool) -> Self {
        let k = windows.len();
        let mut nodes = vec![Player { window: u64::MAX, input: 0 }; k.max(1)];
        // From the leaves up: winners of finished matches wait in `up`.
        let mut up = vec![Player { window: u64::MAX, input: 0 }; 2 * k.max(1)];
        for (input, &window) in windows.iter().enumerate() {
            up[k + input] = Player { window, input: input as u32 };
        }
        for node in (1..k).rev() {
            let (left, right) = (up[2 * node], up[2 * node + 1]);
            let left_wins = before(left, right, &mut tie);
            (up[node], nodes[node]) = if left_wins { (left, right) } else { (right, left) };
        }
        if k > 0 {
            nodes[0] = up[1];
        }
        Self { nodes }
    }

    /// The first input in order. With no inputs at all, 0.
    #[inline]
    pub fn winner(&self) -> u32 {
        self.nodes[0].input
    }

    /// The winner's window.
    #[inline]
    pub fn winner_window(&self) -> u64 {
        self.nodes[0].window
    }

    /// Gives the winner its next window and finds the new winner.
    #[inline]
    pub fn replace(&mut self, window: u64, mut tie: impl FnMut(u32, u32) -> bool) {
        let k = self.nodes.len();
        let mut player = Player { window, input: self.nodes[0].input };
        let mut node = (k + player.input as usize) / 2;
        while node > 0 {
            let loser = &mut self.nodes[node];
            let loser_wins = if loser.window == player.window {
                tie(loser.input, player.input)
            } else {
                loser.window < player.window
            };
            // Who wins is a coin toss, so a branch would be guessed wrong half the time.
            let up = select_unpredictable(loser_wins, *loser, player);
            *loser = select_unpredictable(loser_wins, player, *loser);
            player = up;
            node /= 2;
        }
        self.nodes[0] = player;
    }
}

fn before(a: Player, b: Player, tie: &mut impl FnMut(u32, u32) -> bool) -> bool {
    if a.window == b.window { tie(a.input, b.input) } else { a.window < b.window }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges the lists with the tree; `None` stands for an ended input.
    fn merge(lists: &[Vec<u64>]) -> Vec<(u64, u32)> {
        let mut at = vec![0; lists.len()];
        let head = |at: &[usize], input: usize| lists[input].get(at[input]).copied();
        let windows: Vec<u64> =
            (0..lists.len()).map(|input| head(&at, input).unwrap_or(u64::MAX)).collect();
        let tie = |at: &[usize], a: u32, b: u32| {
            (head(at, a as usize).is_none(), a) < (head(at, b as usize).is_none(), b)
        };
        let mut tree = LoserTree::new(&windows, |a, b| tie(&at, a, b));
        let mut merged = Vec::new();
        while !lists.is_empty() {
            let winner = tree.winner() as usize;
            let Some(value) = head(&at, winner) else { break };
            merged.push((value, winner as u32));
            at[winner] += 1;
            let window = head(&at, winner).unwrap_or(u64::MAX);
            tree.replace(window, |a, b| tie(&at, a, b));
        }
        merged
    }

    #[test]
    fn merges_like_a_stable_sort() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for k in 0..=20 {
            for round in 0..50 {
                let mut lists = Vec::new();
                for _ in 0..k {
                    let len = random(6);
                    let spread = if round % 2 == 0 { 3 } else { 1000 };
                    let mut list: Vec<u64> = (0..len).map(|_| random(spread)).collect();
                    if random(4) == 0 {
                        list.push(u64::MAX);
                    }
                    list.sort_unstable();
                    lists.push(list);
                }
                let mut expect: Vec<(u64, u32)> = lists
                    .iter()
                    .zip(0..)
                    .flat_map(|(list, input)| list.iter().map(move |&value| (value, input)))
                    .collect();
                expect.sort();
                assert_eq!(merge(&lists), expect);
            }
        }
    }
}
