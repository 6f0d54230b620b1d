//! The table of all calls that are served, from the families' files.
//!
//! The REST layer routes, decodes and checks by it, and the client makes its commands of it: a new call is one row, one
//! request type and one rule of the model.

use crate::{
    account,
    call::{Api, Call},
    eip, l2, l3, load_balancer, network_service, port_forwarding, session, tag, vip, vip_qos, vm, zone,
};

/// Every call that is served.
pub fn all() -> impl Iterator<Item = &'static Call> {
    [
        session::CALLS,
        account::CALLS,
        zone::CALLS,
        l2::CALLS,
        l3::CALLS,
        vm::CALLS,
        network_service::CALLS,
        vip::CALLS,
        vip_qos::CALLS,
        load_balancer::CALLS,
        port_forwarding::CALLS,
        eip::CALLS,
        tag::CALLS,
    ]
    .into_iter()
    .flatten()
}

/// The row of a call. Each call has one.
pub fn of(api: Api) -> Option<&'static Call> {
    all().find(|call| call.api == api)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::call::{Access, Method, Place};

    #[test]
    fn each_api_has_exactly_one_row() {
        let rows: Vec<_> = all().map(|call| call.api).collect();
        assert_eq!(rows.iter().copied().collect::<BTreeSet<_>>().len(), rows.len(), "an API has two rows");
        assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), Api::ALL.iter().copied().collect());
    }

    #[test]
    fn a_parameter_is_in_the_path_exactly_if_every_route_names_it() {
        for call in all() {
            for param in call.params {
                let variable = format!("{{{}}}", param.name);
                let named = call.routes.iter().all(|route| route.path.contains(&variable));
                assert_eq!(named, param.place == Place::Path, "{} of {}", param.name, call.api.name());
            }
        }
    }

    #[test]
    fn a_parameter_that_holds_uuids_of_resources_asks_for_access_to_them() {
        for call in all() {
            for param in call.params {
                let holds_uuids = param.name == "uuid" || param.name.ends_with("Uuid") || param.name.ends_with("Uuids");
                let is_session = param.name == "sessionUuid";
                assert_eq!(
                    param.access != Access::Free,
                    holds_uuids && !is_session,
                    "{} of {}",
                    param.name,
                    call.api.name()
                );
            }
        }
    }

    #[test]
    fn a_read_asks_for_no_owner_and_a_change_asks_for_the_owner_of_what_its_path_names() {
        for call in all() {
            let reads = call.routes.iter().all(|route| route.method == Method::Get);
            for param in call.params {
                match param.access {
                    Access::Owner => assert!(!reads, "{} of {}", param.name, call.api.name()),
                    Access::Visible => {
                        assert!(reads || param.place == Place::Argument, "{} of {}", param.name, call.api.name());
                    }
                    Access::Free => {}
                }
            }
        }
    }

    #[test]
    fn puts_and_posts_with_parameters_outside_their_path_have_a_body_key_and_the_others_none() {
        for call in all() {
            for route in call.routes {
                let takes_body = match route.method {
                    Method::Put => true,
                    Method::Post => call.params.iter().any(|param| param.place == Place::Argument),
                    Method::Get | Method::Delete => false,
                };
                assert_eq!(takes_body, !call.body.is_empty(), "{}", call.api.name());
            }
        }
    }
}
