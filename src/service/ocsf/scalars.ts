/** Scalar types: what a value must be, and the bounds OCSF states. */
export const SCALARS: Readonly<
  Record<
    string,
    {
      is: 'string' | 'boolean' | 'integer' | 'long' | 'number' | 'json' | 'object'
      pattern?: RegExp
      maxLength?: number
      range?: readonly [number, number]
    }
  >
> = {
  boolean_t: { is: 'boolean' },
  bytestring_t: {
    is: 'string',
    pattern:
      /^(?:(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)|(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=))?$/,
  },
  datetime_t: { is: 'string', pattern: /^\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d+)?([Zz]|[+-]\d{2}:\d{2})?$/ },
  email_t: { is: 'string', pattern: /^[a-zA-Z0-9!#$%&'*+-/=?^_`{|}~.]+@[a-zA-Z0-9-]+\.[a-zA-Z0-9-.]+$/ },
  file_hash_t: { is: 'string' },
  file_name_t: { is: 'string' },
  file_path_t: { is: 'string' },
  float_t: { is: 'number' },
  hostname_t: { is: 'string' },
  integer_t: { is: 'integer' },
  ip_t: { is: 'string', maxLength: 40 },
  json_t: { is: 'json' },
  long_t: { is: 'long' },
  mac_t: { is: 'string', pattern: /^([0-9A-Fa-f]{2}[:-]){5}([0-9A-Fa-f]{2})$/, maxLength: 32 },
  port_t: { is: 'integer', range: [0, 65535] },
  process_name_t: { is: 'string' },
  resource_uid_t: { is: 'string' },
  string_t: { is: 'string' },
  subnet_t: { is: 'string', maxLength: 42 },
  timestamp_t: { is: 'long' },
  url_t: { is: 'string' },
  username_t: { is: 'string' },
  uuid_t: { is: 'string', pattern: /^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$/ },
  object: { is: 'object' },
}
