//! Every served call that is neither a query nor about sessions has rules.

use serde_json::Map;
use vipgate_api::{Api, Code, call::Mode, calls};

use super::{Router, TwoDevices};
use crate::model::{Caller, call};

#[tokio::test]
async fn every_call_but_queries_and_sessions_has_rules() {
    let router = Router::new().await;
    let caller = Caller { account_uuid: String::new(), admin: true };
    for row in calls::all() {
        let is_of_sessions =
            matches!(row.api, Api::LogInByAccount | Api::LogOut | Api::ValidateSession | Api::RenewSession);
        let has_rules = !is_of_sessions && !matches!(row.mode, Mode::Query(_));
        let mut tx = router.store.begin().await.unwrap();
        let outcome = call(&mut tx, &caller, &TwoDevices, row.api, Map::new()).await;
        let is_unknown = outcome.is_err_and(|error| error.code == Code::Unimplemented);
        assert_eq!(is_unknown, !has_rules, "{}", row.api.name());
    }
}
