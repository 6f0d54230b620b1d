//! The number of a backend's connections: the elements of the BACKEND_LOAD map.

use crate::flow::State;

/// The connections of one generation of a backend, one aligned word that CPUs add to:
/// ```text
/// 63      36 35     8 7           0
/// | admitted |  live  | generation |
/// ```
/// `live` and `admitted` count the first flows in states that [are live](State::is_live) and that
/// [are admitted](State::is_admitted); `generation` is the lower half of [`crate::backend::Backend::generation`].
///
/// A flow is counted as long as it has its backend's generation. To begin a new generation, the controller stores a new
/// word, subtracts the admitted connections from the load of the backend's service, and then writes the backend. So
/// everything that the old generation counted is subtracted at once, whichever backend gets the number next and whenever
/// the flows leave the table. A CPU that adds to the word checks the generation in the old value, and undoes the addition
/// if it was another one ([`Load::counts`]). The generation has the lowest bits, so that an undone subtraction never
/// borrows from it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load(pub u64);

impl Load {
    const LIVE: u32 = 8;
    const ADMITTED: u32 = 36;
    const COUNT: u32 = Self::ADMITTED - Self::LIVE;

    /// The word of a generation without connections.
    #[inline(always)]
    pub const fn of(generation: u16) -> Self {
        Self(generation as u8 as u64)
    }

    /// The lower half of its generation.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        self.0 as u8
    }

    /// True if the word counts flows of this generation.
    #[inline(always)]
    pub const fn counts(self, generation: u16) -> bool {
        self.generation() == generation as u8
    }

    #[inline(always)]
    pub const fn live(self) -> u32 {
        (self.0 >> Self::LIVE) as u32 & ((1 << Self::COUNT) - 1)
    }

    /// Admitted connections; 0 if a change that is about to be undone makes the count negative.
    #[inline(always)]
    pub const fn admitted(self) -> u32 {
        let signed = self.0 as i64 >> Self::ADMITTED;
        if signed < 0 { 0 } else { signed as u32 }
    }

    /// The number to add for so many live and admitted connections, which may be negative. Wraps.
    #[inline(always)]
    pub const fn by(live: i64, admitted: i64) -> u64 {
        (live << Self::LIVE).wrapping_add(admitted << Self::ADMITTED) as u64
    }

    /// The number to add when a connection's first flow changes its state. Connections begin and end in [`State::Empty`].
    #[inline(always)]
    pub const fn change(left: State, state: State) -> u64 {
        Self::by(state.is_live() as i64 - left.is_live() as i64, state.is_admitted() as i64 - left.is_admitted() as i64)
    }
}

crate::pod!(Load);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_counted_and_the_generation_stays() {
        let mut load = Load::of(0x1ff);
        for state in [State::Opening, State::Answered, State::Established] {
            load.0 = load.0.wrapping_add(Load::change(State::Empty, state));
        }
        assert_eq!((load.live(), load.admitted()), (3, 1));
        assert!(load.counts(0xff) && !load.counts(0x100));
        load.0 = load.0.wrapping_add(Load::change(State::Answered, State::Established));
        load.0 = load.0.wrapping_add(Load::change(State::Established, State::Closed));
        assert_eq!((load.live(), load.admitted()), (2, 1));
        assert_eq!(Load::change(State::Closed, State::Empty), 0);
        assert_eq!(Load::change(State::Opening, State::Answered), 0);
    }

    #[test]
    fn what_is_undone_leaves_the_word_as_it_was() {
        let load = Load::of(7);
        let change = Load::change(State::Established, State::Empty);
        let wrong = Load(load.0.wrapping_add(change));
        assert!(wrong.counts(7));
        assert_eq!(wrong.admitted(), 0);
        assert_eq!(wrong.0.wrapping_sub(change), load.0);
    }

    #[test]
    fn a_table_of_the_largest_size_is_counted() {
        let load = Load(Load::of(1).0.wrapping_add(Load::by((1 << 27) - 1, (1 << 27) - 1)));
        assert_eq!((load.live(), load.admitted()), ((1 << 27) - 1, (1 << 27) - 1));
    }
}
