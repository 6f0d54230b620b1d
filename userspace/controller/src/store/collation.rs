//! How texts compare: without regard to case, in every alphabet, and alike on every database.
//!
//! Each character is folded to one other, and folded texts compare by code points. SQLite gets this as a collation, its
//! patterns as GLOB classes that name every case of a letter; a database with `translate()` can do the same with the same
//! pairs of characters. The order follows the Unicode version of the standard library: `rebuild_indexes` runs when that
//! has changed.

use std::{cmp::Ordering, collections::HashMap, sync::LazyLock};

use sqlx::{Connection, SqliteConnection};

/// Name of the collation.
pub const NAME: &str = "folded";

/// The longest pattern in characters, runs of `%` counted once: its GLOB pattern stays below SQLite's 50,000 bytes.
pub const MAX_PATTERN: usize = 4096;

/// The character that represents all cases of `c`: Unicode's simple case folding by upper and lower case, where each is one
/// character. Unlike there, `ı` is an `i`, as in MySQL.
#[must_use]
pub fn fold(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    let upper = single(c.to_uppercase()).unwrap_or(c);
    single(upper.to_lowercase()).unwrap_or(upper)
}

fn single(mut mapped: impl Iterator<Item = char>) -> Option<char> {
    mapped.next().filter(|_| mapped.next().is_none())
}

/// Orders two texts by their folded characters.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    a.chars().map(fold).cmp(b.chars().map(fold))
}

/// Rebuilds the indexes with the collation if it has changed since they were built.
pub(super) async fn rebuild_indexes(writer: &mut SqliteConnection) -> sqlx::Result<()> {
    let (major, minor, update) = char::UNICODE_VERSION;
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let changed = sqlx::query(
        "INSERT INTO collations (name, unicode) VALUES ($1, $2)
         ON CONFLICT (name) DO UPDATE SET unicode = excluded.unicode WHERE unicode <> excluded.unicode",
    )
    .bind(NAME)
    .bind(format!("{major}.{minor}.{update}"))
    .execute(&mut *tx)
    .await?;
    if changed.rows_affected() > 0 {
        sqlx::query("REINDEX folded").execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// Letters with cases are at or below this code point.
const LAST_CASED: u32 = 0x1_FFFF;

/// Folded character -> all its cases, where there is more than one.
static CASES: LazyLock<HashMap<char, String>> = LazyLock::new(|| {
    let mut cases = HashMap::<char, String>::new();
    for c in (0..=LAST_CASED).filter_map(char::from_u32) {
        let folded = fold(c);
        if folded != c {
            cases.entry(folded).or_insert_with(|| folded.into()).push(c);
        }
    }
    cases
});

/// A pattern with `%` and `_`, where `\` escapes the next character, as a GLOB pattern without regard to case. `None` if it is
/// too long, or contains a NUL, which no text does.
#[must_use]
pub fn glob(pattern: &str) -> Option<String> {
    let mut glob = String::with_capacity(pattern.len() * 4);
    let mut length = 0;
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        if c == '%' && glob.ends_with('*') {
            continue;
        }
        length += 1;
        match c {
            '%' => glob.push('*'),
            '_' => glob.push('?'),
            '\\' => literal(rest.next().unwrap_or('\\'), &mut glob),
            other => literal(other, &mut glob),
        }
        if length > MAX_PATTERN || c == '\0' {
            return None;
        }
    }
    Some(glob)
}

fn literal(c: char, glob: &mut String) {
    match (c, CASES.get(&fold(c))) {
        ('*' | '?' | '[', _) => glob.extend(['[', c, ']']),
        (_, Some(cases)) => {
            glob.push('[');
            glob.push_str(cases);
            glob.push(']');
        }
        (_, None) => glob.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_of_every_alphabet_are_the_same() {
        for (a, b) in
            [("Web", "wEB"), ("ÉTÉ", "été"), ("ΣΊΣΥΦΟΣ", "σίσυφος"), ("Ж", "ж"), ("ẞ", "ß"), ("Å", "å"), ("K", "k")]
        {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
        for (a, b) in [("e", "é"), ("ß", "ss"), ("a", "a "), ("", "a"), ("网", "络")] {
            assert_ne!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    #[test]
    fn what_is_folded_stays() {
        for c in '\0'..=char::MAX {
            assert_eq!(fold(fold(c)), fold(c), "{c:?}");
            assert!(u32::from(c) <= LAST_CASED || fold(c) == c, "{c:?}");
        }
    }

    #[test]
    fn patterns_name_every_case() {
        assert_eq!(glob("%%w_é%").unwrap(), "*[wW]?[éÉ]*");
        assert_eq!(glob(r"\%\_\\*?[]-^\").unwrap(), r"%_\[*][?][[]]-^\");
        assert_eq!(glob(r"\%%").unwrap(), "%*");
    }

    #[test]
    fn the_longest_pattern_is_one_that_sqlite_takes() {
        let longest = CASES.values().max_by_key(|cases| cases.len()).unwrap();
        let longest = longest.chars().next().unwrap().to_string();
        assert!(glob(&longest.repeat(MAX_PATTERN)).unwrap().len() <= 50_000);
        assert_eq!(glob(&longest.repeat(MAX_PATTERN + 1)), None);
        assert_eq!(glob("a\0b"), None);
    }
}
