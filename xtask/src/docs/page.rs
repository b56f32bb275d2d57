//! A page of the documentation.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::workspace;

/// A Markdown file.
pub(crate) struct Page {
    /// Where it is, from the root.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// What it is, and anything else after the fence.
    pub(crate) tag: String,
    pub(crate) text: String,
    /// The number of its first line.
    pub(crate) line: usize,
}

impl Page {
    pub(crate) fn read(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let text =
            fs::read_to_string(workspace().join(&path)).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path, text })
    }

    /// The pages at the root and in `docs`.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let mut paths = Vec::new();
        for directory in ["", "docs"] {
            for entry in fs::read_dir(workspace().join(directory))? {
                paths.push(Path::new(directory).join(entry?.file_name()));
            }
        }
        paths.retain(|path| path.extension().is_some_and(|end| end == "md"));
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    /// Its blocks, fenced or not; those that are not have no tag.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut inside = false;
        for (event, range) in Parser::new_ext(&self.text, Options::ENABLE_TABLES).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let (tag, skipped) = match kind {
                        CodeBlockKind::Fenced(tag) => (tag.into_string(), 2),
                        CodeBlockKind::Indented => (String::new(), 1),
                    };
                    let line = self.text[..range.start].matches('\n').count() + skipped;
                    blocks.push(Block { tag, text: String::new(), line });
                    inside = true;
                }
                Event::End(TagEnd::CodeBlock) => inside = false,
                Event::Text(text) if inside => {
                    if let Some(block) = blocks.last_mut() {
                        block.text.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        blocks
    }
}
