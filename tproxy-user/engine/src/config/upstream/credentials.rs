//! What a proxy is to know us by.

use std::{fmt, path::PathBuf, sync::Arc};

/// Longest that SOCKS5 has room for, in bytes (RFC 1929).
const LONGEST: usize = 255;

/// A user name and a password, from a file. They are shown nowhere.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    file: PathBuf,
    user: Arc<str>,
    password: Arc<str>,
}

impl Credentials {
    /// Those that a file of this text has.
    ///
    /// # Errors
    /// One line that says what is to be in it, and nothing of what is.
    pub(crate) fn parse(file: PathBuf, text: &[u8]) -> Result<Self, String> {
        let write = "write USER:PASSWORD on its only line, each of 1 to 255 bytes";
        let text = str::from_utf8(text).map_err(|_| write)?.trim_end_matches(['\r', '\n']);
        let (user, password) = text.split_once(':').ok_or(write)?;
        let fits = |part: &str| (1..=LONGEST).contains(&part.len()) && !part.contains(char::is_control);
        if !fits(user) || !fits(password) {
            return Err(write.to_owned());
        }
        Ok(Self { file, user: user.into(), password: password.into() })
    }

    /// Where they are from.
    #[must_use]
    pub const fn file(&self) -> &PathBuf {
        &self.file
    }

    pub(crate) fn user(&self) -> &str {
        &self.user
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_neither_user_nor_password() {
        let parse = |text: &[u8]| Credentials::parse("corp.login".into(), text);
        let credentials = parse(b"somebody:se:cret\n").unwrap();
        assert_eq!((credentials.user(), credentials.password()), ("somebody", "se:cret"));
        let shown = format!("{credentials:?}");
        assert!(
            shown.contains("corp.login") && !shown.contains("cret") && !shown.contains("somebody"),
            "{shown}"
        );
        let long = [b"a:".as_slice(), &[b'b'; 256]].concat();
        for wrong in [&b""[..], b"nobody", b":password", b"user:", b"a:b\nc:d\n", &[0xff, b':', 0xff], &long]
        {
            let error = parse(wrong).unwrap_err();
            assert!(error.starts_with("write USER:PASSWORD") && !error.contains("nobody"), "{error}");
        }
    }
}
