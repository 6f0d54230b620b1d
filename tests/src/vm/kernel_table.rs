//! The table in `docs/kernels.md`: which programs each kernel accepts, as found by a run.
//!
//! The number of verified instructions changes a little with each change of a program, so the committed numbers may be out of
//! date. What loads must not be: the run fails if it differs.

use super::kernels;
use crate::lab::Result;
use anyhow::{Context as _, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Results by kernel, then by program or hook: `12,345` or `refused`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(BTreeMap<String, BTreeMap<String, String>>);

/// The hooks' columns, which follow the programs'.
pub const HOOKS: [&str; 4] = ["tc", "xdp", "xdp-generic", "auto"];
const REFUSED: &str = "refused";
const KERNEL: &str = "kernel";
const RELEASE: &str = "release";

const HEAD: &str = "\
# Kernels

Which of the released binary's programs Debian's kernels accept, in virtual machines with virtio cards. A program's column is
the number of instructions that the kernel's verifier checked (its limit is 1,000,000); a hook's column is what the programs
were attached by. Written by `cargo xtask vm test --all --write`; each run of the tests is compared with it.

";

impl Findings {
    /// Notes a program: its number of verified instructions, or `None` if the kernel refused it.
    pub fn program(&mut self, kernel: &str, program: &str, instructions: Option<u64>) {
        self.note(kernel, program, instructions.map_or_else(|| REFUSED.to_owned(), grouped));
    }

    /// Notes how a hook attached, or `None` if it did not.
    pub fn hook(&mut self, kernel: &str, hook: &str, attached: Option<&str>) {
        self.note(kernel, hook, attached.unwrap_or(REFUSED).to_owned());
    }

    fn note(&mut self, kernel: &str, column: &str, value: String) {
        self.0.entry(kernel.to_owned()).or_default().insert(column.to_owned(), value);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The committed table, updated with this run's results.
    pub fn over_committed(&self) -> Result<Self> {
        let mut all = Self::committed()?;
        for (kernel, columns) in &self.0 {
            let row = all.0.entry(kernel.clone()).or_default();
            // A kernel's programs are always all tried: other names are programs that no longer exist.
            if columns.keys().any(|column| !is_hook(column)) {
                row.retain(|column, _| is_hook(column));
            }
            row.extend(columns.clone());
        }
        let known = kernels::all()?;
        all.0.retain(|kernel, _| known.iter().any(|row| row.name == *kernel));
        Ok(all)
    }

    fn committed() -> Result<Self> {
        if !path().exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path()).with_context(|| format!("cannot read {}", path().display()))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut rows = text.lines().filter(|line| line.starts_with('|')).map(cells);
        let Some(columns) = rows.next() else { return Self::default() };
        let mut findings = Self::default();
        // Skip the header and the ruler.
        for row in rows.skip(1) {
            let Some(kernel) = row.first() else { continue };
            for (column, value) in columns.iter().zip(&row).skip(2).filter(|(_, value)| !value.is_empty()) {
                findings.note(kernel, column, value.clone());
            }
        }
        findings
    }

    /// The whole page.
    pub fn page(&self) -> Result<String> {
        let mut columns: Vec<&str> = self.0.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
        columns.sort_unstable();
        columns.dedup();
        columns.retain(|column| !is_hook(column));
        columns.extend(HOOKS);
        let mut lines = vec![line([KERNEL, RELEASE].into_iter().chain(columns.iter().copied()))];
        lines.push(line((0..columns.len() + 2).map(|_| "---")));
        for kernel in kernels::all()? {
            let Some(found) = self.0.get(&kernel.name) else { continue };
            let values = columns.iter().map(|column| found.get(*column).map_or("", String::as_str));
            lines.push(line([kernel.name.as_str(), &kernel.release].into_iter().chain(values)));
        }
        Ok(format!("{HEAD}{}\n", lines.join("\n")))
    }

    /// Compares this run with the committed table: the same must load on the same kernels.
    ///
    /// # Errors
    /// Something differs; the message holds the new page.
    pub fn check(&self) -> Result<()> {
        let (committed, now) = (Self::committed()?, self.over_committed()?);
        let page = now.page()?;
        let text = fs::read_to_string(path()).unwrap_or_default();
        let same_kernels = releases(&text) == releases(&page);
        if committed.verdicts() == now.verdicts() && same_kernels {
            return Ok(());
        }
        bail!(
            "docs/kernels.md differs from these results; `cargo xtask vm test --write` updates it\n-- it would be:\n{text}"
        )
    }

    /// Writes the page.
    pub fn write(&self) -> Result<()> {
        fs::write(path(), self.over_committed()?.page()?).with_context(|| format!("cannot write {}", path().display()))
    }

    /// The results without the numbers.
    fn verdicts(&self) -> BTreeMap<(&str, &str), &str> {
        let all = self.0.iter().flat_map(|(kernel, columns)| columns.iter().map(move |column| (kernel, column)));
        let verdict = |value: &'_ str| value.starts_with(|first: char| first.is_ascii_digit());
        all.map(|(kernel, (column, value))| {
            ((kernel.as_str(), column.as_str()), if verdict(value) { "loads" } else { value.as_str() })
        })
        .collect()
    }
}

fn is_hook(column: &str) -> bool {
    HOOKS.contains(&column)
}

/// The first two columns of a page's table.
fn releases(page: &str) -> Vec<Vec<String>> {
    page.lines().filter(|line| line.starts_with('|')).map(|line| cells(line).into_iter().take(2).collect()).collect()
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kernels.md")
}

fn line<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    format!("| {} |", cells.collect::<Vec<_>>().join(" | "))
}

fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// `12,345`
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(instructions: Option<u64>) -> Findings {
        let mut findings = Findings::default();
        findings.program("6.12", "vipgate_tc", instructions);
        findings.hook("6.12", "tc", Some("tc"));
        findings
    }

    #[test]
    fn a_page_holds_what_it_was_written_from() -> Result<()> {
        let page = findings(Some(123_456)).page()?;
        assert!(page.contains("| 123,456 |"), "{page}");
        assert_eq!(Findings::parse(&page), findings(Some(123_456)));
        Ok(())
    }

    #[test]
    fn another_count_is_the_same_verdict_and_a_refusal_is_another() {
        assert_eq!(findings(Some(1)).verdicts(), findings(Some(2)).verdicts());
        assert_ne!(findings(Some(1)).verdicts(), findings(None).verdicts());
    }
}
