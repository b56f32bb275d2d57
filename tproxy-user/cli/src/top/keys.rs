//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tproxy::flows::FlowId;

use super::app::{App, Prompt};

/// Lines of a page.
const PAGE: isize = 10;

/// What is to be done for the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    Quit,
    Refresh,
    Close(FlowId),
}

pub(super) fn press(app: &mut App, key: KeyEvent) -> Wish {
    if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
        return Wish::Quit;
    }
    app.message = None;
    match app.prompt.clone() {
        Prompt::Keys => command(app, key.code),
        Prompt::Filter(text) => edit(app, key.code, text),
        Prompt::Close(id) => {
            app.prompt = Prompt::Keys;
            if key.code == KeyCode::Char('y') { Wish::Close(id) } else { Wish::Nothing }
        }
    }
}

fn command(app: &mut App, key: KeyCode) -> Wish {
    match key {
        KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
        KeyCode::Char('/') => app.prompt = Prompt::Filter(app.filter_text()),
        KeyCode::Char('s') => app.next_order(),
        KeyCode::Char('r') => app.reverse(),
        KeyCode::Char('p' | ' ') => app.pause(),
        KeyCode::Char('x') | KeyCode::Delete => match app.selected() {
            Some(id) => app.prompt = Prompt::Close(id),
            None => app.say("select a flow first, by the arrow keys".into()),
        },
        KeyCode::Up | KeyCode::Char('k') => app.move_by(-1),
        KeyCode::Down | KeyCode::Char('j') => app.move_by(1),
        KeyCode::PageUp => app.move_by(-PAGE),
        KeyCode::PageDown => app.move_by(PAGE),
        KeyCode::Home => app.move_by(isize::MIN),
        KeyCode::End => app.move_by(isize::MAX),
        _ => {}
    }
    Wish::Nothing
}

fn edit(app: &mut App, key: KeyCode, mut text: String) -> Wish {
    match key {
        KeyCode::Esc => {
            app.prompt = Prompt::Keys;
            return Wish::Nothing;
        }
        KeyCode::Enter => {
            match app.set_filter(&text) {
                Ok(()) => app.prompt = Prompt::Keys,
                Err(error) => app.say(error),
            }
            return Wish::Refresh;
        }
        KeyCode::Backspace => drop(text.pop()),
        KeyCode::Char(letter) => text.push(letter),
        _ => {}
    }
    app.prompt = Prompt::Filter(text);
    Wish::Nothing
}
