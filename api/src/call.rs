//! What describes a call: its name, its URLs, its parameters and its reply.
//!
//! Each family's file describes its calls in these types, beside their request types; [`crate::calls`] is the table of
//! all.

use crate::resource::Resource;

macro_rules! apis {
    ($($name:ident,)*) => {
        /// The calls that are served, by their documented names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Api { $($name,)* }

        impl Api {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

apis! {
    LogInByAccount, LogOut, ValidateSession, RenewSession,
    CreateAccount, UpdateAccount, DeleteAccount, QueryAccount, QueryQuota, UpdateQuota,
    ShareResource, RevokeResourceSharing,
    CreateZone, DeleteZone, QueryZone,
    CreateL2NoVlanNetwork, CreateL2VlanNetwork, DeleteL2Network, QueryL2Network, QueryL2VlanNetwork,
    CreateL3Network, DeleteL3Network, QueryL3Network, AddDnsToL3Network, RemoveDnsFromL3Network,
    AddIpRange, AddIpRangeByNetworkCidr, DeleteIpRange, QueryIpRange,
    CreateVmInstance, DestroyVmInstance, StartVmInstance, StopVmInstance, QueryVmInstance, QueryVmNic,
    GetNetworkServiceTypes, QueryNetworkServiceProvider, QueryNetworkServiceL3NetworkRef,
    AttachNetworkServiceToL3Network, DetachNetworkServiceFromL3Network,
    CreateVip, DeleteVip, QueryVip, UpdateVip, ChangeVipState, GetVipUsedPorts,
    SetVipQos, GetVipQos, DeleteVipQos,
    CreateLoadBalancer, DeleteLoadBalancer, QueryLoadBalancer, UpdateLoadBalancer, RefreshLoadBalancer,
    CreateLoadBalancerListener, DeleteLoadBalancerListener, QueryLoadBalancerListener, UpdateLoadBalancerListener,
    GetCandidateVmNicsForLoadBalancer, AddVmNicToLoadBalancer, RemoveVmNicFromLoadBalancer,
    CreatePortForwardingRule, DeletePortForwardingRule, QueryPortForwardingRule, UpdatePortForwardingRule,
    ChangePortForwardingRuleState, GetPortForwardingAttachableVmNics, AttachPortForwardingRule,
    DetachPortForwardingRule,
    CreateEip, DeleteEip, QueryEip, UpdateEip, ChangeEipState, GetEipAttachableVmNics, AttachEip, DetachEip,
    CreateSystemTag, UpdateSystemTag, CreateUserTag, DeleteTag, QuerySystemTag, QueryUserTag,
}

/// An HTTP verb that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

/// Verb and path below `/v1`, with variables in braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub method: Method,
    pub path: &'static str,
}

pub const fn get(path: &'static str) -> Route {
    Route { method: Method::Get, path }
}

pub const fn post(path: &'static str) -> Route {
    Route { method: Method::Post, path }
}

pub const fn put(path: &'static str) -> Route {
    Route { method: Method::Put, path }
}

pub const fn delete(path: &'static str) -> Route {
    Route { method: Method::Delete, path }
}

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answered at once with 200 or 503.
    Sync,
    /// Answered with 202 and a job.
    Async,
    /// Answered at once by the query API; the parameters are those of [`crate::query`].
    Query(Resource),
}

/// What the value of a parameter looks like on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// 32 bits, signed.
    Int,
    /// 64 bits, signed.
    Long,
    Bool,
    TextList,
    /// Name -> list of texts.
    ListMap,
}

/// A rule beyond the kind. A value that breaks it fails the call with SYS.1007.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// At most this many characters.
    MaxLength(usize),
    /// One of these, spelt exactly like this.
    OneOf(&'static [&'static str]),
    /// One of these in any case; the rules get it as it is spelt here.
    OneOfAnyCase(&'static [&'static str]),
    /// Inclusive bounds.
    Range(i64, i64),
    /// 32 hexadecimal digits; the rules get them in lower case.
    Uuid,
    /// At least one element.
    NotEmpty,
    /// At most this many elements.
    MaxItems(usize),
}

/// Where the documents put a parameter. A variable of the path takes precedence over the other places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the path of every route.
    Path,
    /// The body of a POST or PUT, the query string of a GET or DELETE, unless the route has it in its path.
    Argument,
}

/// What a caller that is no administrator needs of the resources that a parameter names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It must own them: the call changes them.
    Owner,
    /// It must own them, or they must be shared with it: the call reads or uses them.
    Visible,
    /// Nothing: the parameter names no resource of an account.
    Free,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    pub name: &'static str,
    pub kind: Kind,
    pub access: Access,
    pub place: Place,
    pub required: bool,
    pub rule: Option<Rule>,
}

impl Param {
    pub const fn new(name: &'static str, kind: Kind, access: Access) -> Self {
        Self { name, kind, access, place: Place::Argument, required: false, rule: None }
    }

    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    #[must_use]
    pub const fn rule(mut self, rule: Rule) -> Self {
        self.rule = Some(rule);
        self
    }
}

pub const fn text(name: &'static str, access: Access) -> Param {
    Param::new(name, Kind::Text, access)
}

/// A required variable of the path.
pub const fn in_path(name: &'static str, access: Access) -> Param {
    let mut param = text(name, access).required();
    param.place = Place::Path;
    param
}

const NAME_LENGTH: Rule = Rule::MaxLength(255);

/// `uuid` in the path: the resource that is changed.
pub const UUID: Param = in_path("uuid", Access::Owner);
/// `uuid` in the path: the resource that is read.
pub const READ_UUID: Param = in_path("uuid", Access::Visible);
/// The name of a new resource.
pub const NAME: Param = text("name", Access::Free).required().rule(NAME_LENGTH);
/// The new name of an existing resource.
pub const NEW_NAME: Param = text("name", Access::Free).rule(NAME_LENGTH);
pub const DESCRIPTION: Param = text("description", Access::Free).rule(Rule::MaxLength(2048));
/// The uuid that the caller wants for the new resource.
pub const RESOURCE_UUID: Param = text("resourceUuid", Access::Owner).rule(Rule::Uuid);
/// Enables or disables a resource.
pub const STATE_EVENT: Param = text("stateEvent", Access::Free).required().rule(Rule::OneOf(&["enable", "disable"]));
pub const DELETE_MODE: Param = text("deleteMode", Access::Free).rule(Rule::OneOf(&["Permissive", "Enforcing"]));

/// What the reply holds according to the documents. It decides the classes in the reply's `schema`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Empty,
    Inventory(Resource),
    Inventories(Resource),
    /// Members that are not inventories.
    Members(&'static [Param]),
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub api: Api,
    pub mode: Mode,
    pub routes: &'static [Route],
    /// The names of the body's member that holds the parameters, the documented one first; empty if the call has no
    /// body.
    pub body: &'static [&'static str],
    pub params: &'static [Param],
    pub answer: Answer,
    /// Whether the call needs a valid session (and its header).
    pub session: bool,
}

impl Call {
    const fn new(api: Api, mode: Mode, routes: &'static [Route], params: &'static [Param], answer: Answer) -> Self {
        Self { api, mode, routes, body: &[], params, answer, session: true }
    }

    pub const fn query(api: Api, resource: Resource, routes: &'static [Route]) -> Self {
        Self::new(api, Mode::Query(resource), routes, &[], Answer::Inventories(resource))
    }

    /// A synchronous GET.
    pub const fn read(api: Api, routes: &'static [Route], params: &'static [Param], answer: Answer) -> Self {
        Self::new(api, Mode::Sync, routes, params, answer)
    }

    /// A POST with its parameters in `params`.
    pub const fn create(api: Api, routes: &'static [Route], params: &'static [Param], answer: Answer) -> Self {
        let mut call = Self::new(api, Mode::Async, routes, params, answer);
        call.body = &["params"];
        call
    }

    /// A POST with all its parameters in its path. Clients send bodies of various shapes, which are ignored.
    pub const fn attach(api: Api, routes: &'static [Route], params: &'static [Param], answer: Answer) -> Self {
        Self::new(api, Mode::Async, routes, params, answer)
    }

    /// A PUT with its parameters under the name of the action.
    pub const fn action(
        api: Api,
        routes: &'static [Route],
        body: &'static [&'static str],
        params: &'static [Param],
        answer: Answer,
    ) -> Self {
        let mut call = Self::new(api, Mode::Async, routes, params, answer);
        call.body = body;
        call
    }

    /// A DELETE with its parameters in the query string.
    pub const fn delete(api: Api, routes: &'static [Route], params: &'static [Param], answer: Answer) -> Self {
        Self::new(api, Mode::Async, routes, params, answer)
    }

    #[must_use]
    pub const fn sync(mut self) -> Self {
        self.mode = Mode::Sync;
        self
    }

    #[must_use]
    pub const fn without_session(mut self) -> Self {
        self.session = false;
        self
    }

    /// The type of the inventories in its reply.
    pub const fn resource(&self) -> Option<Resource> {
        match self.answer {
            Answer::Inventory(resource) | Answer::Inventories(resource) => Some(resource),
            Answer::Empty | Answer::Members(_) => None,
        }
    }
}
