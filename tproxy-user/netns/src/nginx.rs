//! A real web server.

use std::{fs, path::PathBuf};

use super::{Error, Namespace, PATIENCE, Proc, random_suffix};

/// nginx in a namespace, on all its addresses, ports [`Nginx::PORTS`].
///
/// The answer to any path is one line, `server ADDRESS:PORT saw CLIENT:PORT`, and so is its access log.
#[derive(Debug)]
pub struct Nginx {
    proc: Proc,
    directory: Directory,
}

impl Nginx {
    /// The ports it listens on, all of them plain HTTP.
    pub const PORTS: [u16; 5] = [80, 81, 443, 8080, 8443];

    /// # Errors
    /// nginx is missing, or does not answer.
    pub fn start(namespace: &Namespace) -> Result<Self, Error> {
        super::require_tool("nginx")?;
        let directory = Directory::new()?;
        let root = directory.0.display();
        let listen: String =
            Self::PORTS.iter().map(|port| format!("listen {port}; listen [::]:{port};\n")).collect();
        let config = format!(
            r#"
daemon off; master_process off; pid {root}/pid; error_log stderr notice;
events {{ worker_connections 4096; }}
http {{
    client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
    uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
    log_format seen 'server $server_addr:$server_port saw $remote_addr:$remote_port "$request"';
    access_log /dev/stdout seen;
    server {{
        {listen}
        location / {{ return 200 "server $server_addr:$server_port saw $remote_addr:$remote_port\n"; }}
        location /files/ {{ alias {root}/; }}
    }}
}}
"#
        );
        let file = directory.0.join("nginx.conf");
        fs::write(&file, config).map_err(Error::io(file.display().to_string()))?;
        let proc = namespace.start(&format!("nginx -e stderr -p {root} -c {}", file.display()))?;
        // "getrlimit" is the last line a single-process nginx notes, after its sockets listen.
        proc.wait_line(&["getrlimit"], PATIENCE)?;
        Ok(Self { proc, directory })
    }

    /// Offers `content` as `/files/NAME`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_file(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.directory.0.join(name);
        fs::write(&path, content).map_err(Error::io(path.display().to_string()))
    }

    /// Waits for an access-log line that contains each of `words`.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_access(&self, words: &[&str]) -> Result<String, Error> {
        self.proc.wait_line(words, PATIENCE)
    }

    /// The access log so far.
    #[must_use]
    pub fn access_log(&self) -> Vec<String> {
        self.proc.lines().into_iter().filter(|line| line.starts_with("server ")).collect()
    }
}

/// A directory of our own, removed on drop.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("tp-nginx-{}", random_suffix()));
        fs::create_dir(&path).map_err(Error::io(path.display().to_string()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{} is left behind: {error}", self.0.display());
        }
    }
}
