//! The usual start of a test: a lab, its controller, and the API records up to the VMs.

use super::{Cloud, Controller, Hook, Lab, LabOptions, Result};

#[derive(Debug)]
pub struct Running {
    pub cloud: Cloud,
    /// Dropped before the lab that it runs in.
    pub controller: Controller,
    pub lab: Lab,
}

impl Running {
    pub fn new(hook: Hook, clients: u8, backends: u8) -> Result<Self> {
        let lab = Lab::new(LabOptions { hook, clients, backends })?;
        let controller = lab.start_controller()?;
        let cloud = Cloud::new(&lab, controller.api(&lab.router)?)?;
        Ok(Self { cloud, controller, lab })
    }
}
