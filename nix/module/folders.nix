# Where each of services.kvlens.models is on the host. One that is fetched has its hash in its name, so
# that another revision is another folder.
models:
let
  inherit (builtins) hashString mapAttrs substring;
  folder =
    name: model:
    if model.path != null then
      model.path
    else
      "/var/lib/kvlens-models/${name}-${substring 0 16 (hashString "sha256" (toString model.hash))}";
in
mapAttrs folder models
