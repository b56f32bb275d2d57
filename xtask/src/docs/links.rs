//! Where links lead, and how much there is to read at first.

use std::path::Path;

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::page::Page;
use crate::workspace;

#[test]
fn the_readme_is_short() {
    let lines = Page::read("README.md").unwrap().text.lines().count();
    assert!(lines <= 250, "{lines} lines: a page in docs is the place for what is not needed at first");
}

#[test]
fn every_relative_link_leads_somewhere() {
    let (mut wrong, mut found) = (Vec::new(), 0);
    for page in Page::all().unwrap() {
        for link in links(&page).iter().filter(|link| !link.contains("://")) {
            found += 1;
            if let Err(why) = resolve(&page, link) {
                wrong.push(format!("{}: {link}: {why}", page.path.display()));
            }
        }
    }
    assert!(found > 50, "only {found} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_page_is_in_the_summary() {
    let listed = links(&Page::read("docs/SUMMARY.md").unwrap());
    for page in Page::all().unwrap().iter().filter(|page| page.path.starts_with("docs")) {
        let name = page.path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        assert!(name == "SUMMARY.md" || listed.iter().any(|link| link == name), "{name}");
    }
}

fn resolve(page: &Page, link: &str) -> Result<(), String> {
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = match file {
        "" => page.path.clone(),
        file => page.path.parent().unwrap_or(Path::new("")).join(file),
    };
    if !workspace().join(&target).exists() {
        return Err("there is no such file".into());
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let anchors = anchors(&Page::read(target).unwrap());
    if anchors.iter().any(|known| known == anchor) {
        return Ok(());
    }
    Err(format!("there is no such heading; there are {}", anchors.join(" ")))
}

fn events(page: &Page) -> Parser<'_> {
    Parser::new_ext(&page.text, Options::ENABLE_TABLES)
}

/// What its links lead to, as they are written.
fn links(page: &Page) -> Vec<String> {
    let targets = events(page).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    });
    targets.collect()
}

/// What `#…` can lead to: its headings, in the manner of GitHub and mdBook.
fn anchors(page: &Page) -> Vec<String> {
    let (mut anchors, mut heading) = (Vec::new(), None);
    for event in events(page) {
        match (event, &mut heading) {
            (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
            (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
            (Event::End(TagEnd::Heading(_)), _) => {
                anchors.extend(heading.take().map(|heading| anchor(&heading)));
            }
            _ => {}
        }
    }
    anchors
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|&c| c.is_alphanumeric() || c == '-' || c == '_').collect()
}
