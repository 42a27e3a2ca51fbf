# As much of nixpkgs' lib as this flake uses.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elemAt
    filter
    foldl'
    genList
    isString
    length
    listToAttrs
    map
    replaceStrings
    split
    stringLength
    substring
    ;
  lib =
    import ./modules.nix
    // builtins
    // {
      concatMapStringsSep =
        glue: make: items:
        concatStringsSep glue (map make items);
      escapeShellArgs =
        words:
        concatStringsSep " " (map (word: "'${replaceStrings [ "'" ] [ "'\\''" ] (toString word)}'") words);
      fileset = {
        fileFilter = _: root: root;
        toSource = told: told.root;
        unions = files: files;
      };
      filterAttrs =
        keeps: set:
        listToAttrs (
          map (name: {
            inherit name;
            value = set.${name};
          }) (filter (name: keeps name set.${name}) (attrNames set))
        );
      genAttrs =
        names: make:
        listToAttrs (
          map (name: {
            inherit name;
            value = make name;
          }) names
        );
      getAttrs = names: set: lib.genAttrs names (name: set.${name});
      getExe = package: "${package}/bin/${package.meta.mainProgram or package.name}";
      hasInfix =
        part: text:
        length (
          split (replaceStrings
            [
              "."
              "["
              "("
              "]"
              ")"
              "{"
              "}"
              "*"
              "+"
              "?"
              "|"
              "^"
              "$"
              "\\"
            ]
            [
              "[.]"
              "[[]"
              "[(]"
              "[]]"
              "[)]"
              "[{]"
              "[}]"
              "[*]"
              "[+]"
              "[?]"
              "[|]"
              "\\^"
              "[$]"
              "\\\\"
            ]
            part
          ) text
        ) > 1;
      hasPrefix = start: text: substring 0 (stringLength start) text == start;
      hasSuffix =
        end: text:
        stringLength end <= stringLength text
        && substring (stringLength text - stringLength end) (-1) text == end;
      imap0 = make: items: genList (place: make place (elemAt items place)) (length items);
      licenses.asl20 = { };
      last = items: elemAt items (length items - 1);
      literalExpression = text: {
        _type = "literalExpression";
        inherit text;
      };
      makeBinPath = concatStringsSep ":";
      makeLibraryPath = concatStringsSep ":";
      mapAttrs' = make: set: listToAttrs (map (name: make name set.${name}) (attrNames set));
      mapAttrsToList = make: set: map (name: make name set.${name}) (attrNames set);
      nameValuePair = name: value: { inherit name value; };
      optional = condition: item: if condition then [ item ] else [ ];
      optionalAttrs = condition: set: if condition then set else { };
      optionals = condition: items: if condition then items else [ ];
      platforms.linux = [ ];
      removePrefix =
        start: text: if lib.hasPrefix start text then substring (stringLength start) (-1) text else text;
      removeSuffix =
        end: text:
        if lib.hasSuffix end text then substring 0 (stringLength text - stringLength end) text else text;
      sourceTypes.binaryNativeCode = { };
      splitString = glue: text: filter isString (split "[${glue}]" text);
      take = count: items: genList (elemAt items) (if count < length items then count else length items);
      toInt = builtins.fromJSON;
      toUpper = text: text;
      unique = foldl' (seen: one: if builtins.elem one seen then seen else seen ++ [ one ]) [ ];
    };
in
{
  inherit lib;
}
