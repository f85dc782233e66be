export * from './compile.js'
export { beyondFlask, DIRECT_RIGHTS, directRights, type FlaskPermission } from './direct.js'
export type { RuleChange } from './domains.js'
export { booleanOf, buildLabelOf, LATCH, labelOf, typeOf } from './names.js'
