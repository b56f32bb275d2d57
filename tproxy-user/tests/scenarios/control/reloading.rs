use std::{fs, path::PathBuf};

use super::*;

/// A configuration file, removed when dropped.
struct File(PathBuf);

impl File {
    fn new(world: &World, text: &str) -> Self {
        let file = Self(std::env::temp_dir().join(format!("{}.toml", world.net.gateway.name())));
        file.write(text);
        file
    }

    /// A rule that answers with this text.
    fn write(&self, text: &str) {
        let rule = "[[rules]]\nname = \"web\"\nscope = \"forwarded\"\ninterfaces = [\"lan\"]\nports = [80]";
        fs::write(&self.0, format!("{rule}\naction = \"respond={text}\"\n")).unwrap();
    }
}

impl Drop for File {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn a_reload_is_asked_for_confirmed_counted_and_rolled_back_by_itself() {
    let world = World::new();
    let file = File::new(&world, "first");
    let tproxy = world.tproxy(&format!("--config {}", file.0.display()));
    let assert_says = |text: &str| world.curl(Family::V4.public(), 80).assert_body(text, &*tproxy);
    assert_says("first");
    file.write("second");
    let said = ask(&world, "reload --confirm 10m");
    assert!(said.contains("changed=1 (web)") && said.contains("10m00s"), "{said}");
    assert_says("second");
    assert!(ask(&world, "confirm").contains("confirmed"));
    let twice = tproxy_output(&world.net.gateway, "confirm");
    assert!(!twice.status.success() && twice.said.contains("no reload waits"), "{}", twice.said);
    file.write("third");
    curled(&world, &["-X", "POST"], "/reload?confirm=200ms");
    tproxy.wait_line(&["rolled back"], PATIENCE).unwrap();
    assert_says("second");
    fs::write(&file.0, "rules = 7").unwrap();
    let wrong = tproxy_output(&world.net.gateway, "reload");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(wrong.said.contains("1:9: rules"), "{}", wrong.said);
    assert_says("second");
    let metrics = ask(&world, "metrics");
    for line in [
        "tproxy_reloads_total{result=\"applied\"} 2.0",
        "tproxy_reloads_total{result=\"refused\"} 1.0",
        "tproxy_reloads_total{result=\"rolled_back\"} 1.0",
        // One rule, whatever it says.
        "tproxy_rule_hits_total{rule=\"web\"} 4.0",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line}\n{metrics}");
    }
}

#[test]
fn without_a_file_there_is_nothing_to_reload() {
    let world = World::new();
    let _tproxy = world.tproxy(&format!("{FORWARDED} --action pass"));
    let refused = tproxy_output(&world.net.gateway, "reload");
    assert!(!refused.status.success() && refused.said.contains("--config FILE"), "{}", refused.said);
}
