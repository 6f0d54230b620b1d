//! How many connections a backend has: the elements of the BACKEND_LOAD map.

use crate::flow::State;

/// The connections of one generation of a backend, one aligned word that CPUs add to:
/// ```text
/// 63      36 35     8 7           0
/// | admitted |  live  | generation |
/// ```
/// `live` and `admitted` count the first flows in states that [are live](State::is_live) and that
/// [are admitted](State::is_admitted); `generation` is the lower half of [`crate::backend::Backend::generation`].
///
/// A flow is counted as long as its generation is its backend's. Who begins another one stores the word that begins it, takes
/// the connections that were admitted off the load of the service that the backend was in, and then lets the programs know:
/// so all that a generation counted is off at once, where it was counted, whoever gets the number next and whenever its flows
/// leave the table. Who adds to the word looks at the generation that it had, and undoes what was another's
/// ([`Load::counts`]). The generation stands lowest, so that nothing that is undone ever borrows from it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load(pub u64);

impl Load {
    const LIVE: u32 = 8;
    const ADMITTED: u32 = 36;
    const COUNT: u32 = Self::ADMITTED - Self::LIVE;

    /// Of a generation that has no connection yet.
    #[inline(always)]
    pub const fn of(generation: u16) -> Self {
        Self(generation as u8 as u64)
    }

    /// The lower half of its generation.
    #[inline(always)]
    pub const fn generation(self) -> u8 {
        self.0 as u8
    }

    /// True for the word that a flow of this generation counts in.
    #[inline(always)]
    pub const fn counts(self, generation: u16) -> bool {
        self.generation() == generation as u8
    }

    #[inline(always)]
    pub const fn live(self) -> u32 {
        (self.0 >> Self::LIVE) as u32 & ((1 << Self::COUNT) - 1)
    }

    /// None below 0, where a change that is being undone may bring it for a moment.
    #[inline(always)]
    pub const fn admitted(self) -> u32 {
        let signed = self.0 as i64 >> Self::ADMITTED;
        if signed < 0 { 0 } else { signed as u32 }
    }

    /// What is added for connections that are live, and for such that are admitted; negative ones leave. Wraps.
    #[inline(always)]
    pub const fn by(live: i64, admitted: i64) -> u64 {
        (live << Self::LIVE).wrapping_add(admitted << Self::ADMITTED) as u64
    }

    /// What is added when a connection's first flow leaves a state for another; [`State::Empty`] is that of one that begins or
    /// ends.
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
