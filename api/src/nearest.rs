//! Suggestions for misspelt names in errors.

/// The candidate with the least edit distance to `written`; `None` if there is no candidate.
#[must_use]
pub fn nearest<'a>(written: &str, of: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    of.into_iter().min_by_key(|known| strsim::levenshtein(known, written))
}
