//! What was probably meant, for errors.

/// Which of these is the nearest to what was written; `None`: there are none.
#[must_use]
pub fn nearest<'a>(written: &str, of: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    of.into_iter().min_by_key(|known| strsim::levenshtein(known, written))
}
