//! README, CONTRIBUTING and the book in `docs/`: links lead somewhere, commands parse, and what must be explained is.
//!
//! Needs no mdbook and no privileges. Runs the built programs with `--help` only, or without a session to speak by.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use vipgate_abi::counters::{Reason, Severity};
use vipgate_tests::lab::{Result, vipgate_binary};

/// Pages outside the book that are held to the same rules.
const BESIDE_THE_BOOK: [&str; 4] = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
/// README is for one look.
const LINES_OF_README: usize = 150;
/// Commands of `vipgate` that are more than a call of the API: what they do is not tried.
const NO_CALLS: [&str; 9] =
    ["serve", "check-config", "detach", "status", "flows", "doctor", "login", "apply", "completion"];
/// vipgate's exit code for wrong usage.
const WRONG_USAGE: i32 = 2;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A page of Markdown.
struct Page {
    /// Below the tree's root.
    name: PathBuf,
    text: String,
}

impl Page {
    fn read(name: impl Into<PathBuf>) -> Result<Self> {
        let name = name.into();
        let text = fs::read_to_string(root().join(&name)).with_context(|| format!("cannot read {}", name.display()))?;
        Ok(Self { name, text })
    }

    /// Its lines, each with whether it is inside a block of code, and of which language.
    fn lines(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let mut language = None;
        self.text.lines().filter_map(move |line| match (line.trim_start().strip_prefix("```"), language) {
            (Some(named), None) => {
                language = Some(named.trim());
                None
            }
            (Some(_), Some(_)) => {
                language = None;
                None
            }
            (None, language) => Some((line, language)),
        })
    }

    /// What is no block of code.
    fn prose(&self) -> String {
        let lines = self.lines().filter(|(_, language)| language.is_none());
        lines.map(|(line, _)| format!("{line}\n")).collect()
    }

    /// The blocks of shell lines, one after the other.
    fn shell(&self) -> String {
        let lines = self.lines().filter(|(_, language)| *language == Some("sh"));
        lines.map(|(line, _)| format!("{line}\n")).collect()
    }

    /// Pieces of code within sentences.
    fn inline_code(&self) -> Vec<String> {
        let prose = self.prose();
        prose.split('`').skip(1).step_by(2).map(|code| code.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    fn headings(&self) -> Vec<String> {
        let prose = self.prose();
        let headings = prose.lines().filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
        headings.map(str::to_owned).collect()
    }

    /// The text under a heading, to the next heading.
    fn section(&self, heading: &str) -> Option<&str> {
        let (_, text) = self.text.split_once(&format!("\n### {heading}\n"))?;
        text.split("\n#").next()
    }

    fn anchors(&self) -> BTreeSet<String> {
        self.headings().iter().map(|heading| slug(heading)).collect()
    }

    /// Targets of its links and pictures.
    fn links(&self) -> Vec<String> {
        let prose = self.prose();
        let without_code: String = prose.split('`').step_by(2).collect();
        let targets = without_code.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
        targets.collect()
    }
}

/// A heading's anchor, as forges and mdBook make it.
fn slug(heading: &str) -> String {
    let kept =
        heading.to_lowercase().chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one)).collect::<String>();
    kept.replace(' ', "-")
}

/// The files of a directory and those below it, from the tree's root on.
fn files(directory: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(directory))? {
        let entry = entry?;
        let name = format!("{directory}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() { found.extend(files(&name)?) } else { found.push(name.into()) }
    }
    Ok(found)
}

fn book() -> Result<Vec<Page>> {
    let pages = files("docs")?.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    pages.map(Page::read).collect()
}

fn pages() -> Result<Vec<Page>> {
    let mut pages = book()?;
    for name in BESIDE_THE_BOOK {
        pages.push(Page::read(name)?);
    }
    Ok(pages)
}

/// `docs/services/../drops.md` is `docs/drops.md`; `None` if it leads out of the tree.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut parts = Vec::new();
    for part in path.iter().filter(|part| *part != ".") {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    Some(parts.into_iter().collect())
}

#[test]
fn readme_is_short() -> Result<()> {
    let lines = Page::read("README.md")?.text.lines().count();
    ensure!(lines <= LINES_OF_README, "README.md has {lines} lines, and may have {LINES_OF_README}");
    Ok(())
}

#[test]
fn every_link_and_anchor_leads_somewhere() -> Result<()> {
    let pages = pages()?;
    let anchors: BTreeMap<&Path, _> = pages.iter().map(|page| (page.name.as_path(), page.anchors())).collect();
    let mut wrong = Vec::new();
    for page in &pages {
        let is_in_book = page.name.starts_with("docs");
        for link in page.links().iter().filter(|link| !link.contains("://")) {
            let (path, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(path, anchor)| (path, Some(anchor)));
            let beside = page.name.parent().unwrap_or(Path::new(""));
            let to = if path.is_empty() { Some(page.name.clone()) } else { normal(&beside.join(path)) };
            let leads = to.is_some_and(|to| {
                // The book is a site of its own, too.
                let is_near = !is_in_book || to.starts_with("docs");
                is_near
                    && root().join(&to).exists()
                    && anchor.is_none_or(|anchor| anchors.get(to.as_path()).is_some_and(|all| all.contains(anchor)))
            });
            if !leads {
                wrong.push(format!("{}: {link}", page.name.display()));
            }
        }
    }
    ensure!(wrong.is_empty(), "these links lead nowhere:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_summary_lists_every_page_and_every_picture_is_shown() -> Result<()> {
    let summary = Page::read("docs/SUMMARY.md")?;
    let listed: BTreeSet<PathBuf> = summary.links().iter().map(|link| Path::new("docs").join(link)).collect();
    let there: BTreeSet<PathBuf> =
        book()?.into_iter().map(|page| page.name).filter(|name| *name != summary.name).collect();
    same("docs/SUMMARY.md", &listed, &there)?;
    let shown: BTreeSet<PathBuf> = pages()?
        .iter()
        .flat_map(|page| {
            page.links().into_iter().filter_map(|link| normal(&page.name.parent()?.join(link))).collect::<Vec<_>>()
        })
        .collect();
    for picture in files("docs/figures")? {
        ensure!(shown.contains(&picture), "no page shows {}", picture.display());
    }
    Ok(())
}

/// The commands in lines of a shell, as words. Knows quotes, comments, and what stands between commands.
fn commands(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let (mut commands, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut quote = None;
    for one in text.chars().chain(['\n']) {
        match (one, quote) {
            (one, Some('#')) if one != '\n' => {}
            (one, Some(open)) if one == open => quote = None,
            (one, Some(open)) if open != '#' => word.get_or_insert_default().push(one),
            ('\'' | '"', _) => {
                quote = Some(one);
                word.get_or_insert_default();
            }
            ('#', _) if word.is_none() => quote = Some('#'),
            (' ', _) => words.extend(word.take()),
            ('\n' | '|' | ';' | '&' | '(' | ')' | '<' | '>', _) => {
                quote = None;
                words.extend(word.take());
                commands.push(std::mem::take(&mut words));
            }
            (one, _) => word.get_or_insert_default().push(one),
        }
    }
    commands.retain(|words| !words.is_empty());
    commands
}

#[test]
fn commands_are_read_as_a_shell_reads_them() {
    let text = "vipgate a 'b c' --d \"\" # vipgate x\nsource <(vipgate e f)\nvipgate g \\\n  h | jq -r '.i[]' > j\n";
    let found: Vec<_> = commands(text).into_iter().filter(|words| words[0] == "vipgate").collect();
    assert_eq!(found, [vec!["vipgate", "a", "b c", "--d", ""], vec!["vipgate", "e", "f"], vec!["vipgate", "g", "h"]]);
}

/// What a program answers to these words. There is no session for it.
fn run(program: &Path, words: &[String], last: &[&str]) -> Result<(i32, String)> {
    let home = tempfile::tempdir()?;
    let mut command = Command::new(program);
    command.args(words).args(last).env_remove("XDG_STATE_HOME").env("HOME", home.path());
    let output = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code().unwrap_or(-1), said))
}

/// Tries words of `vipgate` or `cargo xtask`, without doing what they ask for; the reason if they are refused. `None`: they are
/// of another program, or right.
fn fault(words: &[String], whole: bool) -> Result<Option<String>> {
    let vipgate = vipgate_binary()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let (status, said) = match words[..] {
        ["vipgate", ref rest @ ..] => {
            let help = run(&vipgate, &owned(rest), &["--help"])?;
            let is_call = rest.first().is_some_and(|command| !NO_CALLS.contains(command));
            if whole && is_call && help.0 == 0 {
                // Its required options are missed, too. With all of them it misses a session.
                let (status, said) = run(&vipgate, &owned(rest), &[])?;
                if status == WRONG_USAGE { (status, said) } else { help }
            } else {
                help
            }
        }
        // Both give their words to another program.
        ["cargo", "xtask", "vm", ref rest @ ..] => run(Path::new(env!("CARGO_BIN_EXE_vm")), &owned(rest), &["--help"])?,
        ["cargo", "xtask", "bench", "--", ref rest @ ..] => {
            run(Path::new(env!("CARGO_BIN_EXE_bench")), &owned(rest), &["--help"])?
        }
        ["cargo", "xtask", ref rest @ ..] => run(&vipgate.with_file_name("xtask"), &owned(rest), &["--help"])?,
        _ => return Ok(None),
    };
    Ok((status != 0).then(|| format!("{}: exit status {status}: {said}", words.join(" "))))
}

#[test]
fn every_command_parses() -> Result<()> {
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for page in pages()? {
        let blocks = commands(&page.shell()).into_iter().map(|words| (words, true));
        let inline = page.inline_code().into_iter().flat_map(|code| commands(&code)).map(|words| (words, false));
        for (words, whole) in blocks.chain(inline) {
            // What stands for any value, or for more words, is no command to try.
            if words.iter().any(|word| word.contains("...") || word.contains('<')) {
                continue;
            }
            tried += usize::from(words[0] == "vipgate" || words.starts_with(&["cargo".into(), "xtask".into()]));
            if let Some(fault) = fault(&words, whole)? {
                wrong.push(format!("{}: {fault}", page.name.display()));
            }
        }
    }
    ensure!(tried > 100, "only {tried} commands were found");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Whether a page has what it is to have, and nothing else.
fn same<T: Ord + Debug>(page: &str, has: &BTreeSet<T>, wanted: &BTreeSet<T>) -> Result<()> {
    let missing: Vec<_> = wanted.difference(has).collect();
    let beyond: Vec<_> = has.difference(wanted).collect();
    ensure!(
        missing.is_empty() && beyond.is_empty(),
        "{page} lacks {missing:?}, and has {beyond:?}, which are not there"
    );
    Ok(())
}

/// Headings of the third level of a page: its entries.
fn entries(page: &Page) -> BTreeSet<String> {
    page.text.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect()
}

#[test]
fn every_drop_reason_is_explained_with_its_verdict_and_its_place_in_the_log() -> Result<()> {
    let page = Page::read("docs/drops.md")?;
    let names: BTreeSet<String> = Reason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    same("docs/drops.md", &entries(&page), &names)?;
    let (dropped, passed) = page.text.split_once("\n## To the stack\n").context("the page has two parts")?;
    for reason in Reason::ALL {
        let part = if reason.is_drop() { dropped } else { passed };
        ensure!(part.contains(&format!("\n### {}\n", reason.name())), "{} is in the wrong part", reason.name());
        let level = match reason.severity() {
            Severity::Silent => "never.",
            Severity::Debug => "`debug`.",
            Severity::Info => "`info`.",
            Severity::Warn => "`warn`.",
        };
        let text =
            page.section(reason.name()).context("it has an entry")?.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(
            text.ends_with(&format!("Log: {level}")),
            "{}: its entry does not end with its level, {level}",
            reason.name()
        );
    }
    Ok(())
}

/// What stands before the name of a finding in the doctor's source.
const BEFORE_A_NAME: [&str; 6] =
    ["Severity::Error,", "Severity::Warning,", "Severity::Note,", "severity,", "check:", "wrong("];

#[test]
fn every_finding_of_the_doctor_is_explained() -> Result<()> {
    let mut names = BTreeSet::new();
    for path in files("userspace/vipgate/src/doctor")? {
        if path.ends_with("tests.rs") {
            continue;
        }
        let source = fs::read_to_string(root().join(path))?;
        let pieces: Vec<&str> = source.split('"').collect();
        for pair in pieces.windows(2) {
            let is_named = BEFORE_A_NAME.iter().any(|before| pair[0].trim_end().ends_with(before));
            if is_named && pair[1].chars().all(|one| one.is_ascii_lowercase() || one == '_') {
                names.insert(pair[1].to_owned());
            }
        }
    }
    same("docs/doctor.md", &entries(&Page::read("docs/doctor.md")?), &names)
}
