# Every example by its name, and what is refused: the tests here and the flake's own checks read them.
let
  inherit (builtins)
    attrNames
    filter
    listToAttrs
    match
    readDir
    replaceStrings
    ;
  files = filter (
    file: match ".*[.]nix" file != null && file != "default.nix" && file != "refused.nix"
  ) (attrNames (readDir ./.));
in
{
  examples = listToAttrs (
    map (file: {
      name = replaceStrings [ ".nix" ] [ "" ] file;
      value = ./. + "/${file}";
    }) files
  );
  refused = import ./refused.nix;
}
