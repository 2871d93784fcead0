//! What stood between an action and the host, told in its result for whoever must know later how far to trust it: a
//! `google.protobuf.Struct` among the auxiliary metadata, which every client can print.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Any, Struct, Value};

use crate::reapi::any;
use crate::sandbox::{Level, View};

/// The message.
pub(super) fn isolation(level: Option<Level>, view: &View) -> Any {
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let mut fields = BTreeMap::new();
    let mut field = |name: &str, kind| {
        fields.insert(name.to_owned(), Value { kind: Some(kind) });
    };
    field("sandbox", text(level.map_or("none", Level::name)));
    // The other level has neither: it shows the host as it is.
    if level == Some(Level::Full) {
        field("sandbox_profile", text(&view.profile));
        field("sandbox_root", text(view.root.name()));
        field("sandbox_network", Kind::BoolValue(view.network));
    }
    any::pack(&Struct { fields })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_told() {
        let told = |level| {
            let any = isolation(Some(level), &View::default());
            assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.Struct");
            any::unpack::<Struct>(&any).unwrap().unwrap().fields
        };
        let full = told(Level::Full);
        let names: Vec<&str> = full.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "sandbox",
                "sandbox_network",
                "sandbox_profile",
                "sandbox_root"
            ]
        );
        assert_eq!(full["sandbox"].kind, Some(Kind::StringValue("full".into())));
        assert_eq!(told(Level::Process).len(), 1);
    }
}
