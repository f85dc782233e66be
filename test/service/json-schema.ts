type Schema = { readonly [key: string]: unknown }

/**
 * Checks a value against the part of JSON Schema 2020-12 that the gateway's description uses, strictly: a keyword it does not
 * know is a problem of its own.
 */
export function schemaProblems(
  schema: Schema,
  value: unknown,
  schemas: Readonly<Record<string, Schema>>,
  at = '$',
): string[] {
  const problems: string[] = []
  const fail = (why: string) => problems.push(`${at}: ${why}`)
  const deeper = (inner: unknown, item: unknown, path: string) =>
    problems.push(...schemaProblems(inner as Schema, item, schemas, path))
  const record = value as Record<string, unknown>
  for (const [keyword, operand] of Object.entries(schema)) {
    switch (keyword) {
      case '$ref': {
        const name = /^#\/components\/schemas\/(\w+)$/.exec(String(operand))?.[1] ?? ''
        if (schemas[name]) deeper(schemas[name], value, at)
        else fail(`no schema ${operand}`)
        break
      }
      case 'type':
        if (!isOf(String(operand), value)) fail(`is no ${operand}`)
        break
      case 'const':
        if (value !== operand) fail(`is not ${operand}`)
        break
      case 'enum':
        if (!(operand as unknown[]).includes(value)) fail(`is none of ${operand}`)
        break
      case 'minimum':
        if ((value as number) < (operand as number)) fail(`is below ${operand}`)
        break
      case 'maximum':
        if ((value as number) > (operand as number)) fail(`is above ${operand}`)
        break
      case 'pattern':
        if (!new RegExp(String(operand)).test(String(value))) fail(`is not ${operand}`)
        break
      case 'maxLength':
        if ((value as string).length > (operand as number)) fail('is too long')
        break
      case 'minItems':
        if ((value as unknown[]).length < (operand as number)) fail('has too few')
        break
      case 'items':
        for (const [i, item] of (value as unknown[]).entries()) deeper(operand, item, `${at}[${i}]`)
        break
      case 'required':
        for (const name of operand as string[]) if (record?.[name] === undefined) fail(`lacks ${name}`)
        break
      case 'properties':
        for (const [name, inner] of Object.entries(operand as object)) {
          if (record?.[name] !== undefined) deeper(inner, record[name], `${at}.${name}`)
        }
        break
      case 'additionalProperties': {
        const known = Object.keys((schema.properties as object | undefined) ?? {})
        if (operand === false) for (const name of Object.keys(record)) if (!known.includes(name)) fail(`has ${name}`)
        break
      }
      case 'oneOf': {
        const fits = (operand as Schema[]).filter((one) => schemaProblems(one, value, schemas, at).length === 0)
        if (fits.length !== 1) fail(`fits ${fits.length} of oneOf: ${JSON.stringify(value).slice(0, 200)}`)
        break
      }
      case 'description':
      case 'contentEncoding':
        break
      default:
        fail(`unknown keyword ${keyword}`)
    }
  }
  return problems
}

function isOf(type: string, value: unknown): boolean {
  if (type === 'integer') return Number.isSafeInteger(value)
  if (type === 'array') return Array.isArray(value)
  if (type === 'object') return typeof value === 'object' && value !== null && !Array.isArray(value)
  return typeof value === type
}
