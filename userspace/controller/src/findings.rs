//! Stores the results of health checks.

use std::collections::{BTreeMap, BTreeSet};

use vipgate_state::Findings;

use crate::{
    model,
    store::{self, Store, lb},
};

impl Findings for Store {
    type Error = store::Error;

    async fn unapplied(&self) -> store::Result<BTreeSet<String>> {
        Ok(lb::pending_vips(&mut self.look().await?).await?.into_iter().collect())
    }

    async fn store(&self, healthy: &BTreeMap<u32, bool>) -> store::Result<BTreeSet<String>> {
        let mut tx = self.begin().await?;
        let mut vips = BTreeSet::new();
        for (backend, healthy) in healthy {
            vips.extend(lb::set_healthy(&mut tx, *backend, *healthy).await?);
        }
        tx.commit().await?;
        Ok(vips)
    }

    async fn applied(&self, vips: &BTreeSet<String>) -> store::Result<()> {
        let mut tx = self.begin().await?;
        model::applied(&mut tx, vips).await?;
        tx.commit().await
    }
}
