//! A page of the documentation.

use std::{
    fs,
    path::{Path, PathBuf},
};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::workspace;

/// A Markdown file.
pub(crate) struct Page {
    /// Where it is, from the root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

impl Page {
    pub(crate) fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(workspace().join(&path));
        Self { text: text.unwrap_or_else(|error| panic!("{}: {error}", path.display())), path }
    }

    /// The pages at the root and in `docs`.
    pub(crate) fn all() -> Vec<Self> {
        let files = ["", "docs"].into_iter().flat_map(|directory| {
            let entries = fs::read_dir(workspace().join(directory)).expect(directory);
            entries.map(move |entry| Path::new(directory).join(entry.expect(directory).file_name()))
        });
        let mut pages: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
        pages.sort();
        pages.into_iter().map(Self::read).collect()
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = Event<'_>> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES)
    }

    /// What its links lead to, as they are written.
    pub(crate) fn links(&self) -> impl Iterator<Item = String> {
        self.events().filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some(dest_url.into_string())
            }
            _ => None,
        })
    }

    /// What `#…` can lead to: its headings, in the manner of GitHub and mdBook.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let (mut anchors, mut heading) = (Vec::new(), None);
        for event in self.events() {
            match (event, &mut heading) {
                (Event::Start(Tag::Heading { .. }), _) => heading = Some(String::new()),
                (Event::Text(text) | Event::Code(text), Some(heading)) => heading.push_str(&text),
                (Event::End(TagEnd::Heading(_)), _) => {
                    anchors.extend(heading.take().map(|heading| anchor(&heading)))
                }
                _ => {}
            }
        }
        anchors
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|&c| c.is_alphanumeric() || c == '-' || c == '_').collect()
}
