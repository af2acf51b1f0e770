//! Is the page on the contract what the contract says? `wit/CONTRACT.md` is made of the WIT's own comments: a change of one without the
//! other fails here, and `WASMVOL_WRITE=1 make test ARGS=page_on_the_contract` writes the page anew.

use std::fmt::Write as _;
use std::fs;

use super::root;

/// The contract's files, in the order of the page.
const FILES: [&str; 5] = ["volumes", "abilities", "imports", "types", "worlds"];
const HEAD: &str = "<!-- Made from the comments of since_v0.1.0/*.wit: change those, and write this anew. -->\n\n\
    # The contract, 0.1.0\n\n\
    What a driver exports and may import, in the contract's own words: [`since_v0.1.0/`](since_v0.1.0). How it grows stands in\n\
    [README.md](README.md); how a driver is written, in [the guide](../guest-sdk/README.md).\n";

/// One file as Markdown: interfaces and worlds are headings, and what each declares is shown below what is said of it.
fn page_of(name: &str, wit: &str) -> String {
    let mut page = String::new();
    let mut said: Vec<&str> = Vec::new();
    let mut declared: Vec<&str> = Vec::new();
    let mut inside = false;
    for line in wit.lines() {
        let text = line.trim();
        let depth: usize = declared.iter().map(|line| line.matches('{').count()).sum::<usize>()
            - declared.iter().map(|line| line.matches('}').count()).sum::<usize>();
        if let Some(words) = text.strip_prefix("///").filter(|_| depth == 0) {
            said.push(words.trim());
        } else if text.is_empty() && declared.is_empty() {
            // What is said of the whole file stands before an empty line.
            if !inside && !said.is_empty() {
                let _ = writeln!(page, "\n{}", said.join(" "));
                said.clear();
            }
        } else if let Some(head) = text.strip_suffix(" {").filter(|_| depth == 0 && is_head(text)) {
            let (kind, name) = head.split_once(' ').unwrap();
            let _ = writeln!(page, "\n## {kind} `{name}`\n");
            if !said.is_empty() {
                let _ = writeln!(page, "{}", said.join(" "));
            }
            said.clear();
            inside = true;
        } else if text == "}" && declared.is_empty() {
            inside = false;
        } else if !text.starts_with("package ") && !text.starts_with("use ") && !text.is_empty() {
            declared.push(line);
            let opened: usize = declared.iter().map(|line| line.matches('{').count()).sum();
            let closed: usize = declared.iter().map(|line| line.matches('}').count()).sum();
            if opened == closed && (text.ends_with(';') || text.ends_with('}') || is_head(text)) {
                write_item(&mut page, &said, &declared);
                (said, declared) = (Vec::new(), Vec::new());
            }
        }
    }
    assert!(declared.is_empty(), "{name}.wit ends in the middle of {declared:?}");
    page
}

fn is_head(text: &str) -> bool {
    text.starts_with("interface ") || text.starts_with("world ")
}

fn write_item(page: &mut String, said: &[&str], declared: &[&str]) {
    let indent = declared[0].len() - declared[0].trim_start().len();
    let lines: Vec<_> = declared.iter().map(|line| line.get(indent..).unwrap_or(line)).collect();
    // A world of one line is a heading of its own.
    if let Some(rest) = lines[0].strip_prefix("world ") {
        let _ = writeln!(page, "\n## world `{}`", rest.split(' ').next().unwrap());
    }
    if !said.is_empty() {
        let _ = writeln!(page, "\n{}", said.join(" "));
    }
    let _ = writeln!(page, "\n```wit\n{}\n```", lines.join("\n"));
}

#[test]
fn the_page_on_the_contract_is_what_its_comments_say() {
    let wit = root().join("wit");
    let mut page = HEAD.to_owned();
    for name in FILES {
        let text = fs::read_to_string(wit.join(format!("since_v0.1.0/{name}.wit"))).unwrap();
        page.push_str(&page_of(name, &text));
    }
    let there = wit.join("CONTRACT.md");
    if std::env::var_os("WASMVOL_WRITE").is_some() {
        fs::write(&there, &page).unwrap();
    }
    assert!(
        fs::read_to_string(&there).unwrap_or_default() == page,
        "wit/CONTRACT.md is not what the WIT says: write it with WASMVOL_WRITE=1"
    );
    for name in ["create", "populate", "reveal", "again", "driver", "with-health"] {
        assert!(page.contains(name), "{name} is not on the page");
    }
}
