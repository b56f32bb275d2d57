//! Where links lead, and how much there is to read at first.

use std::path::Path;

use super::page::Page;
use crate::workspace;

#[test]
fn the_readme_is_short() {
    let lines = Page::read("README.md").text.lines().count();
    assert!(lines <= 250, "{lines} lines: a page in docs is the place for what is not needed at first");
}

#[test]
fn every_relative_link_leads_somewhere() {
    let (mut wrong, mut found) = (Vec::new(), 0);
    for page in Page::all() {
        for link in page.links().filter(|link| !link.contains("://")) {
            found += 1;
            if let Err(why) = resolve(&page, &link) {
                wrong.push(format!("{}: {link}: {why}", page.path.display()));
            }
        }
    }
    assert!(found > 50, "only {found} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
    let anchors = Page::read(target).anchors();
    if anchors.iter().any(|known| known == anchor) {
        return Ok(());
    }
    Err(format!("there is no such heading; there are {}", anchors.join(" ")))
}

#[test]
fn every_page_is_in_the_summary() {
    let listed: Vec<_> = Page::read("docs/SUMMARY.md").links().collect();
    for page in Page::all().iter().filter(|page| page.path.starts_with("docs")) {
        let name = page.path.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        assert!(name == "SUMMARY.md" || listed.iter().any(|link| link == name), "{name}");
    }
}
