//! `tproxy check`: what is wrong with a file is known here, what it would change the running instance knows.

use std::path::{PathBuf, absolute};

use anyhow::anyhow;
use hyper::Method;
use tproxy::{config::Config, instance::Changes};

use super::{InstanceArgs, say};
use crate::control::{
    Checked,
    client::{Client, ClientError},
};

/// `tproxy check`
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// The file
    pub file: PathBuf,
    #[command(flatten)]
    instance: InstanceArgs,
}

impl CheckArgs {
    /// Says how much the file holds, and what a reload of it would change, where an instance runs that can be asked.
    ///
    /// # Errors
    /// Why the instance would refuse it.
    pub async fn compare(self, config: &Config) -> anyhow::Result<()> {
        say(&format!("{}: {}\n", self.file.display(), config.summary()))?;
        for remark in config.remarks_on_this_host() {
            say(&format!("warning: {remark}\n"))?;
        }
        for note in config.notes() {
            say(&format!("note: {note}\n"))?;
        }
        let client = Client::new(Some(self.instance.name.unwrap_or_else(|| config.instance_name())));
        let query = serde_urlencoded::to_string(Checked { file: absolute(&self.file)? })?;
        let name = client.name();
        match client.ask::<Changes>(Method::GET, &format!("/check?{query}")).await {
            Ok(changes) => say(&format!("a reload by '{name}': {changes:#}\n")),
            Err(none @ (ClientError::NotRunning { .. } | ClientError::Forbidden { .. })) => {
                say(&format!("not compared with what runs: {none}\n"))
            }
            Err(ClientError::Refused(reason)) => {
                Err(anyhow!("a reload by '{name}' would be refused: {reason}"))
            }
            Err(error) => Err(error.into()),
        }
    }
}
