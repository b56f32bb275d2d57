use std::{fs, path::Path, process::Command};

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};
use tproxy::{
    config::{RuleEgress, Source},
    flows::{FlowProtocol, FlowScope, FlowState, ShownFlow},
};

use super::{app::Prompt, *};
use crate::control::{Counts, ShownLive, ShownRule, ShownState, Status};

fn flow(id: u64, client: &str, dst: &str, rule: &str, bytes: (u64, u64), age_seconds: f64) -> ShownFlow {
    let dst = dst.parse().unwrap();
    ShownFlow {
        id: FlowId(id),
        protocol: FlowProtocol::Tcp,
        scope: FlowScope::Forwarded,
        client: client.parse().unwrap(),
        original_destination: dst,
        upstream: Some(dst),
        rule: rule.into(),
        bytes_up: bytes.0,
        bytes_down: bytes.1,
        age_seconds,
        state: FlowState::Relaying,
        end: None,
    }
}

fn rule(name: &str, action: &str, hits: u64, live: u64) -> ShownRule {
    ShownRule {
        name: name.into(),
        scope: FlowScope::Forwarded,
        protocols: vec![FlowProtocol::Tcp, FlowProtocol::Udp],
        action: action.into(),
        servers: vec![],
        source: Source::default(),
        egress: RuleEgress::default(),
        hits,
        live,
    }
}

/// The instance after so many seconds.
fn sample_after(seconds: u64) -> Sample {
    let counts = |of: &[(&str, u64)]| {
        of.iter().map(|(name, count)| ((*name).to_owned(), count * seconds)).collect::<Counts>()
    };
    Sample {
        status: Status {
            name: "gateway".parse().unwrap(),
            version: "0.1.0".into(),
            pid: 4711,
            uptime_seconds: seconds as f64,
            state: ShownState::Running,
            mark: "0x20000000/0x30000000".into(),
            table: 29_808,
            workers: 2,
            rules: 3,
            generation: 0,
            missing: vec![],
            restored: 0,
            lost: Vec::new(),
            hooks: vec![],
            metrics: None,
            live: ShownLive { connections: 3, sessions: 1 },
            connections: counts(&[("accepted", 12), ("bytes_up", 50_000), ("bytes_down", 3_000_000)]),
            datagrams: counts(&[("sessions", 2), ("bytes_up", 100), ("bytes_down", 1_000)]),
            packets: counts(&[("steer_rule", 14)]),
        },
        rules: vec![
            rule("blocked", "reject", 2 * seconds, 0),
            rule("dns", "upstream=10.9.9.9:53", 2 * seconds, 1),
            rule("web", "direct", 12 * seconds, 3),
        ],
        flows: vec![
            flow(1, "10.1.0.2:40000", "8.8.8.8:443", "web", (1_000 * seconds, 2_000_000 * seconds), 70.0),
            flow(2, "10.1.0.3:40001", "8.8.8.8:443", "web", (49_000 * seconds, 1_000_000 * seconds), 3.0),
            flow(5, "[2001:db8:1::2]:555", "[2001:db8:2::2]:80", "web", (0, 0), 3_700.0),
            ShownFlow {
                protocol: FlowProtocol::Udp,
                upstream: Some("10.9.9.9:53".parse().unwrap()),
                state: FlowState::TwoWay,
                ..flow(4, "10.1.0.2:5353", "8.8.8.8:53", "dns", (100 * seconds, 1_000 * seconds), 0.4)
            },
        ],
    }
}

fn app() -> App {
    let mut app = App::new(Filter::default());
    app.take(sample_after(60));
    app.take(sample_after(62));
    app
}

fn press(app: &mut App, keys: &[KeyCode]) -> Wish {
    let press = |wish, key: &KeyCode| match keys::press(app, KeyEvent::new(*key, KeyModifiers::NONE)) {
        Wish::Nothing => wish,
        wish => wish,
    };
    keys.iter().fold(Wish::Nothing, press)
}

fn write(app: &mut App, text: &str) -> Wish {
    let keys: Vec<_> = text.chars().map(KeyCode::Char).collect();
    press(app, &keys)
}

fn ids(app: &App) -> Vec<u64> {
    app.picture.as_ref().unwrap().flows.iter().map(|flow| flow.flow.id.0).collect()
}

fn screen(app: &mut App) -> String {
    let mut terminal = Terminal::new(TestBackend::new(132, 26)).unwrap();
    terminal.draw(|frame| view::draw(frame, app)).unwrap();
    let buffer = terminal.backend().buffer();
    let row =
        |row: u16| (0..buffer.area.width).map(|column| buffer[(column, row)].symbol()).collect::<String>();
    let rows: Vec<_> = (0..buffer.area.height).map(|at| row(at).trim_end().to_owned()).collect();
    rows.join("\n") + "\n"
}

#[test]
fn rates_are_what_was_added_in_a_second() {
    let app = app();
    let picture = app.picture.as_ref().unwrap();
    assert_eq!((picture.accepted, picture.sessions), (12.0, 2.0));
    assert_eq!((picture.bytes.up, picture.bytes.down), (50_100.0, 3_001_000.0));
    let clients: Vec<_> =
        picture.clients.iter().map(|client| (client.address.to_string(), client.flows)).collect();
    let expected = [("10.1.0.2", 2), ("10.1.0.3", 1), ("2001:db8:1::2", 1)];
    assert_eq!(clients, expected.map(|(address, flows)| (address.to_owned(), flows)));
    let rules: Vec<_> = picture.rules.iter().map(|rule| (&*rule.rule.name, rule.hits)).collect();
    assert_eq!(rules, [("web", 12.0), ("dns", 2.0), ("blocked", 2.0)]);
}

#[test]
fn an_instance_that_began_anew_is_not_compared_with_the_one_before() {
    let mut app = app();
    app.take(sample_after(1));
    assert_eq!(app.picture.as_ref().unwrap().accepted, 0.0);
}

#[test]
fn flows_are_sorted_by_keys_and_the_selected_one_stays_so() {
    let mut app = app();
    assert_eq!(ids(&app), [1, 2, 4, 5], "by rate");
    press(&mut app, &[KeyCode::Down, KeyCode::Down]);
    assert_eq!(app.selected(), Some(FlowId(2)));
    write(&mut app, "ss");
    assert_eq!(ids(&app), [5, 1, 2, 4], "by age");
    assert_eq!((app.selected(), app.table.selected()), (Some(FlowId(2)), Some(2)));
    write(&mut app, "r");
    assert_eq!(ids(&app), [4, 2, 1, 5], "reversed");
    press(&mut app, &[KeyCode::End]);
    assert_eq!(app.selected(), Some(FlowId(5)));
    press(&mut app, &[KeyCode::Home, KeyCode::Up]);
    assert_eq!(app.selected(), Some(FlowId(4)));
    app.take(Sample { flows: vec![], ..sample_after(63) });
    assert_eq!(app.selected(), None, "it has ended");
    assert_eq!(press(&mut app, &[KeyCode::Down]), Wish::Nothing);
}

#[test]
fn a_flow_is_closed_only_after_a_yes() {
    let mut app = app();
    assert_eq!(write(&mut app, "x"), Wish::Nothing);
    assert!(app.message.is_some(), "none is selected");
    press(&mut app, &[KeyCode::Down]);
    assert_eq!(write(&mut app, "xn"), Wish::Nothing);
    assert_eq!(write(&mut app, "xy"), Wish::Close(FlowId(1)));
    assert_eq!(app.prompt, Prompt::Keys);
}

#[test]
fn a_filter_is_written_checked_and_shown() {
    let mut app = app();
    write(&mut app, "/client=10.0.0.0/8 proto=tcpx");
    press(&mut app, &[KeyCode::Backspace]);
    assert_eq!(press(&mut app, &[KeyCode::Enter]), Wish::Refresh);
    assert_eq!(app.filter_text(), "proto=tcp client=10.0.0.0/8");
    assert!(screen(&mut app).contains("where proto=tcp client=10.0.0.0/8"));
    write(&mut app, "/ nonsense");
    press(&mut app, &[KeyCode::Enter]);
    assert!(app.message.as_ref().is_some_and(|message| message.contains("NAME=VALUE")), "{:?}", app.message);
    assert!(matches!(app.prompt, Prompt::Filter(_)), "it can be corrected");
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!(app.filter_text(), "proto=tcp client=10.0.0.0/8", "it is what it was");
}

#[test]
fn keys_that_quit() {
    for key in [KeyCode::Char('q'), KeyCode::Esc] {
        assert_eq!(press(&mut app(), &[key]), Wish::Quit);
    }
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    let mut app = app();
    write(&mut app, "/q");
    assert_eq!(keys::press(&mut app, interrupt), Wish::Quit);
}

#[test]
fn any_size_of_the_screen_will_do() {
    for (width, height) in [(1, 1), (5, 3), (20, 8), (80, 24), (300, 100)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view::draw(frame, &mut app())).unwrap();
    }
}

#[test]
fn the_screen_in_the_documentation_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/top.txt");
    let mut app = app();
    press(&mut app, &[KeyCode::Down, KeyCode::Down]);
    let screen = screen(&mut app);
    if std::env::var_os("TPROXY_WRITE_DOCS").is_some() {
        fs::write(&path, &screen).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, screen, "make it anew: TPROXY_WRITE_DOCS=1 cargo test --lib top::");
}

const CHILD: &str = "TPROXY_TEST_PANIC_IN_TOP";

/// In a terminal of its own, which `script` makes and records.
#[test]
fn a_panic_gives_the_terminal_back_before_it_is_told() {
    const NAME: &str = "top::tests::a_panic_gives_the_terminal_back_before_it_is_told";
    if std::env::var_os(CHILD).is_some() {
        let (mut terminal, _restored) = take_terminal().unwrap();
        terminal.draw(|frame| view::draw(frame, &mut app())).unwrap();
        panic!("on purpose");
    }
    let itself = std::env::current_exe().unwrap();
    let command = format!("{} --exact {NAME} --nocapture", itself.display());
    let output = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env(CHILD, "1")
        .env("TERM", "xterm")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("script, of util-linux or bsdutils");
    let said = String::from_utf8_lossy(&output.stdout);
    let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("{what:?} is not in {said:?}"));
    assert!(at("\x1b[?1049h") < at("\x1b[?1049l"), "{said:?}");
    assert!(at("\x1b[?1049l") < at("on purpose"), "{said:?}");
}
