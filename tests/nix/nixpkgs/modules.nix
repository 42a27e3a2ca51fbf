# A small evaluator of modules: options, definitions with their conditions and priorities, submodules. It
# knows what this flake's modules use, and says in the words of NixOS what is wrong with a definition.
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    elem
    filter
    foldl'
    head
    isAttrs
    isFunction
    isList
    length
    listToAttrs
    map
    mapAttrs
    ;

  isA = kind: value: isAttrs value && (value._type or null) == kind;
  dotted = concatStringsSep ".";
  unique = foldl' (seen: one: if elem one seen then seen else seen ++ [ one ]) [ ];

  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };

  # The names that a definition of many options defines; whether its condition holds is not asked yet.
  namesOf =
    value:
    if isA "if" value || isA "override" value then
      namesOf value.content
    else if isA "merge" value then
      concatMap namesOf value.contents
    else
      attrNames value;

  # What a definition says of one name, its conditions around it.
  pick =
    name: value:
    if isA "if" value then
      map (mkIf value.condition) (pick name value.content)
    else if isA "override" value then
      map (mkOverride value.priority) (pick name value.content)
    else if isA "merge" value then
      concatMap (pick name) value.contents
    else if value ? ${name} then
      [ value.${name} ]
    else
      [ ];

  # The values of a definition that count, each with its priority: the lowest wins.
  values =
    priority: value:
    if isA "if" value then
      (if value.condition then values priority value.content else [ ])
    else if isA "merge" value then
      concatMap (values priority) value.contents
    else if isA "override" value then
      values value.priority value.content
    else
      [ { inherit priority value; } ];

  # The values of the definitions, those of the strongest priority alone.
  strongest =
    definitions:
    let
      all = concatMap (values 100) definitions;
      least = foldl' (least: one: if one.priority < least then one.priority else least) 9999 all;
    in
    map (one: one.value) (filter (one: one.priority == least) all);

  mergeAs =
    type: path: definitions:
    let
      found = strongest definitions;
      wrong = filter (value: !type.check value) found;
    in
    if wrong != [ ] then
      throw "A definition for option `${dotted path}' is not of type `${type.description}'."
    else
      type.merge path found;

  valueOf =
    path: option: definitions:
    let
      default = if option ? default then [ (mkOverride 1500 option.default) ] else [ ];
      all = definitions ++ default;
      value =
        if concatMap (values 100) all == [ ] then
          throw "The option `${dotted path}' was accessed but has no value defined."
        else
          mergeAs option.type path all;
    in
    if option ? apply then option.apply value else value;

  configOf =
    path: options: definitions:
    let
      unknown = filter (name: !options ? ${name}) (concatMap namesOf definitions);
    in
    if unknown != [ ] then
      throw "The option `${dotted (path ++ [ (head unknown) ])}' does not exist."
    else
      mapAttrs (
        name: option:
        let
          below = concatMap (pick name) definitions;
        in
        (if isA "option" option then valueOf else configOf) (path ++ [ name ]) option below
      ) options;

  # Options of several modules, in one tree.
  join = foldl' (
    tree: more:
    tree
    // mapAttrs (
      name: option:
      if tree ? ${name} && !isA "option" option then
        join [
          tree.${name}
          option
        ]
      else
        option
    ) more
  ) { };

  collect =
    arguments: module:
    let
      told =
        if isFunction module then
          module
        else if isAttrs module then
          module
        else
          import module;
      made = if isFunction told then told arguments else told;
      imported = concatMap (collect arguments) (made.imports or [ ]);
      rest = removeAttrs made [
        "imports"
        "options"
        "config"
        "_module"
      ];
    in
    imported
    ++ [
      {
        options = made.options or { };
        config = made.config or rest;
      }
    ];

  evalModules =
    {
      modules,
      path ? [ ],
      specialArgs ? { },
    }:
    let
      inherit (import ./lib.nix) lib;
      all = concatMap (collect ({ inherit config lib options; } // specialArgs)) modules;
      options = join (map (module: module.options) all);
      config = configOf path options (map (module: module.config) all);
    in
    {
      inherit config options;
    };

  type = description: check: merge: {
    _type = "type";
    inherit description check merge;
  };

  # Definitions of what can have one value only.
  one =
    path: found:
    if length (unique found) == 1 then
      head found
    else
      throw "The option `${dotted path}' has conflicting definition values.";

  simple = description: check: type description check one;
  between =
    low: high:
    simple "integer between ${toString low} and ${toString high} (both inclusive)" (
      value: builtins.isInt value && value >= low && value <= high
    );

  # What formats take: tables are joined key by key, lists one after the other.
  anything = type "anything" (_: true) (
    path: found:
    if builtins.all (value: isAttrs value && !(value ? outPath)) found then
      listToAttrs (
        map
          (name: {
            inherit name;
            value = mergeAs anything (path ++ [ name ]) (concatMap (pick name) found);
          })
          (filter (name: strongest (concatMap (pick name) found) != [ ]) (unique (concatMap namesOf found)))
      )
    else if builtins.all isList found then
      concatMap (items: items) found
    else
      one path found
  );

  types = {
    inherit anything;
    raw = anything;
    bool = simple "boolean" builtins.isBool;
    int = simple "signed integer" builtins.isInt;
    str = simple "string" builtins.isString;
    lines = type "strings concatenated with \"\\n\"" builtins.isString (_: concatStringsSep "\n");
    path = simple "absolute path" (
      value: builtins.isPath value || value ? outPath || builtins.substring 0 1 value == "/"
    );
    package = simple "package" (value: value ? outPath);
    port = between 0 65535 // {
      description = "16 bit unsigned integer; between 0 and 65535 (both inclusive)";
    };
    ints = {
      inherit between;
      unsigned = simple "unsigned integer, meaning >=0" (value: builtins.isInt value && value >= 0);
    };
    enum =
      words:
      simple "one of ${concatStringsSep ", " (map builtins.toJSON words)}" (value: elem value words);
    nullOr =
      some:
      type "null or ${some.description}" (value: value == null || some.check value) (
        path: found: if elem null found then one path found else some.merge path found
      );
    either =
      left: right:
      type "${left.description} or ${right.description}" (value: left.check value || right.check value) (
        path: found: (if builtins.all left.check found then left else right).merge path found
      );
    listOf =
      item:
      type "list of ${item.description}" isList (
        path: found: map (value: mergeAs item path [ value ]) (concatMap (items: items) found)
      );
    attrsOf =
      item:
      {
        options = item.options or { };
      }
      // type "attribute set of ${item.description}" isAttrs (
        path: found:
        listToAttrs (
          map
            (name: {
              inherit name;
              value = mergeAs item (path ++ [ name ]) (concatMap (pick name) found);
            })
            (
              filter (name: concatMap (values 100) (concatMap (pick name) found) != [ ]) (
                unique (concatMap namesOf found)
              )
            )
        )
      );
    submodule =
      module:
      let
        evaluate =
          path: found:
          evalModules {
            modules = [ module ] ++ map (config: { inherit config; }) found;
            inherit path;
            specialArgs.name = builtins.elemAt path (length path - 1);
          };
      in
      {
        inherit (evaluate [ "<name>" ] [ ]) options;
      }
      // type "submodule" isAttrs (path: found: (evaluate path found).config);
  };
in
{
  inherit
    evalModules
    mkIf
    mkMerge
    mkOverride
    types
    ;
  mkDefault = mkOverride 1000;
  mkForce = mkOverride 50;
  mkOption = option: option // { _type = "option"; };
  mkEnableOption = what: {
    _type = "option";
    type = types.bool;
    default = false;
    description = "Whether to enable ${what}.";
  };
}
