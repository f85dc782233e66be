/**
 * What the validator knows of OCSF 1.8.0: names, types, requirements and enumerations of the two classes this library
 * emits and of the objects it fills. Source: the OCSF schema, version 1.8.0 (schema.ocsf.io), without profiles.
 *
 * An attribute is written `name` + requirement (`!` required, `+` recommended, `?` optional) + type, `[]` for an array,
 * and `=sibling` where another attribute carries its caption.
 */
export const OCSF_VERSION = '1.8.0'

/** Classes: identifiers and the captions that go with them. */
export const CLASSES = {
  detection_finding: { class_uid: 2004, class_name: 'Detection Finding', category_uid: 2, category_name: 'Findings' },
  api_activity: { class_uid: 6003, class_name: 'API Activity', category_uid: 6, category_name: 'Application Activity' },
} as const

/** Attributes of the classes and objects. */
export const ATTRIBUTES: Readonly<Record<string, string>> = {
  detection_finding: `
    activity_id!integer_t=activity_name activity_name?string_t anomaly_analyses?anomaly_analysis[]
    category_name?string_t category_uid!integer_t=category_name class_name?string_t class_uid!integer_t=class_name
    comment?string_t confidence?string_t confidence_id+integer_t=confidence confidence_score?integer_t
    count?integer_t device?device duration?long_t end_time?timestamp_t enrichments?enrichment[]
    evidences+evidences[] finding_info!finding_info impact?string_t impact_id?integer_t=impact
    impact_score?integer_t is_alert+boolean_t malware?malware[] malware_scan_info?malware_scan_info message+string_t
    metadata!metadata observables+observable[] raw_data?string_t raw_data_hash?fingerprint raw_data_size?long_t
    remediation?remediation resources+resource_details[] risk_details?string_t risk_level?string_t
    risk_level_id?integer_t=risk_level risk_score?integer_t severity?string_t severity_id!integer_t=severity
    start_time?timestamp_t status?string_t status_code+string_t status_detail+string_t status_id+integer_t=status
    time!timestamp_t timezone_offset+integer_t type_name?string_t type_uid!long_t=type_name unmapped?object
    vendor_attributes?vendor_attributes vulnerabilities?vulnerability[]
  `,
  api_activity: `
    activity_id!integer_t=activity_name activity_name?string_t actor!actor api!api category_name?string_t
    category_uid!integer_t=category_name class_name?string_t class_uid!integer_t=class_name count?integer_t
    dst_endpoint+network_endpoint duration?long_t end_time?timestamp_t enrichments?enrichment[]
    http_request+http_request http_response+http_response message+string_t metadata!metadata
    observables+observable[] raw_data?string_t raw_data_hash?fingerprint raw_data_size?long_t
    resources+resource_details[] severity?string_t severity_id!integer_t=severity src_endpoint!network_endpoint
    start_time?timestamp_t status+string_t status_code+string_t status_detail+string_t status_id+integer_t=status
    time!timestamp_t timezone_offset+integer_t type_name?string_t type_uid!long_t=type_name unmapped?object
  `,
  metadata: `
    correlation_uid?string_t debug?string_t[] event_code?string_t extensions?extension[] is_truncated?boolean_t
    labels?string_t[] log_format?string_t log_level?string_t log_name+string_t log_provider?string_t
    log_source?string_t log_version?string_t logged_time?timestamp_t loggers?logger[] modified_time?timestamp_t
    original_event_uid?string_t original_time+string_t processed_time?timestamp_t product!product
    profiles?string_t[] reporter+reporter sequence?integer_t source?string_t tags?key_value_object[]
    tenant_uid+string_t total_queued_duration?timespan transformation_info_list?transformation_info[]
    transmit_time?timestamp_t type?string_t uid?string_t untruncated_size?integer_t version!string_t
  `,
  product: `
    cpe_name?string_t feature?feature lang?string_t name+string_t path?string_t uid+string_t url_string?url_t
    vendor_name+string_t version+string_t
  `,
  feature: `
    name+string_t uid+string_t version+string_t
  `,
  finding_info: `
    analytic+analytic attack_graph?graph attacks?attack[] created_time?timestamp_t data_sources?string_t[]
    desc?string_t first_seen_time?timestamp_t kill_chain?kill_chain_phase[] last_seen_time?timestamp_t
    modified_time?timestamp_t product?product related_analytics?analytic[] related_events?related_event[]
    related_events_count?integer_t src_url?url_t tags?key_value_object[] title+string_t traits?trait[]
    types?string_t[] uid!string_t uid_alt?string_t
  `,
  analytic: `
    algorithm?string_t category?string_t desc?string_t name+string_t state?string_t state_id?integer_t=state
    type?string_t type_id!integer_t=type uid+string_t version?string_t
  `,
  attack: `
    mitigation?mitigation sub_technique+sub_technique tactic+tactic technique+technique version+string_t
  `,
  tactic: `
    name+string_t src_url?url_t uid+string_t
  `,
  technique: `
    name+string_t src_url?url_t uid+string_t
  `,
  sub_technique: `
    name+string_t src_url?url_t uid+string_t
  `,
  evidences: `
    actor+actor api+api connection_info+network_connection_info container+container data?json_t database+database
    databucket+databucket device+device dst_endpoint+network_endpoint email+email file+file
    http_request+http_request http_response+http_response ja4_fingerprint_list+ja4_fingerprint[] job+job
    name?string_t process+process query+dns_query resources+resource_details[] script+script
    src_endpoint+network_endpoint tls+tls uid?string_t url+url user+user verdict?string_t
    verdict_id?integer_t=verdict
  `,
  process: `
    ancestry?process_entity[] cmd_line+string_t cpid+uuid_t created_time+timestamp_t
    environment_variables?environment_variable[] file+file integrity?string_t integrity_id?integer_t=integrity
    loaded_modules?string_t[] name+process_name_t parent_process+process path?string_t pid+integer_t ptid?long_t
    sandbox?string_t session?session terminated_time?timestamp_t uid+string_t user+user working_directory?string_t
    xattributes?object
  `,
  file: `
    accessed_time?timestamp_t accessor?user attributes?integer_t company_name?string_t confidentiality?string_t
    confidentiality_id?integer_t=confidentiality created_time?timestamp_t creator?user desc?string_t
    drive_type?string_t drive_type_id?integer_t=drive_type encryption_details?encryption_details ext+string_t
    hashes+fingerprint[] imported_symbols?string_t[] internal_name?string_t is_deleted?boolean_t
    is_encrypted?boolean_t is_readonly?boolean_t is_system?boolean_t mime_type?string_t modified_time?timestamp_t
    modifier?user name!file_name_t owner?user parent_folder?string_t path+file_path_t product?product
    security_descriptor?string_t signatures?digital_signature[] size?long_t tags?key_value_object[] type?string_t
    type_id!integer_t=type uid?string_t uri?url_t url?url version?string_t volume?string_t xattributes?object
  `,
  fingerprint: `
    algorithm?string_t algorithm_id!integer_t=algorithm value!file_hash_t
  `,
  user: `
    account?account display_name?string_t domain?string_t email_addr?email_t forward_addr?email_t full_name?string_t
    groups?group[] has_mfa+boolean_t ldap_person?ldap_person name+username_t org?organization phone_number?string_t
    programmatic_credentials?programmatic_credential[] risk_level?string_t risk_level_id?integer_t=risk_level
    risk_score?integer_t type?string_t type_id+integer_t=type uid+string_t uid_alt?string_t
  `,
  resource_details: `
    agent_list?agent[] created_time?timestamp_t criticality?string_t data?json_t group?group hostname+hostname_t
    ip+ip_t is_backed_up?boolean_t labels?string_t[] modified_time?timestamp_t name+string_t namespace?string_t
    owner+user resource_relationship?graph role?string_t role_id+integer_t=role tags?key_value_object[]
    type?string_t uid+resource_uid_t uid_alt?resource_uid_t version?string_t
  `,
  device: `
    agent_list?agent[] autoscale_uid?string_t boot_time?timestamp_t boot_uid?string_t created_time?timestamp_t
    desc?string_t domain?string_t eid?string_t first_seen_time?timestamp_t groups?group[] hostname+hostname_t
    hw_info?device_hw_info hypervisor?string_t iccid?string_t image?image imei_list?string_t[] instance_uid+string_t
    interface_name+string_t interface_uid+string_t ip?ip_t is_backed_up?boolean_t is_compliant?boolean_t
    is_managed?boolean_t is_mobile_account_active?boolean_t is_personal?boolean_t is_shared?boolean_t
    is_supervised?boolean_t is_trusted?boolean_t last_seen_time?timestamp_t location?location mac?mac_t
    mac_vendor?string_t meid?string_t model?string_t modified_time?timestamp_t name?string_t
    network_interfaces?network_interface[] org?organization os?os os_machine_uuid?uuid_t owner+user pool?group
    region+string_t risk_level?string_t risk_level_id?integer_t=risk_level risk_score?integer_t subnet?subnet_t
    subnet_uid?string_t type+string_t type_id!integer_t=type udid?string_t uid+string_t uid_alt?string_t
    vendor_name+string_t vlan_uid?string_t vpc_uid?string_t zone?string_t
  `,
  os: `
    build?string_t country?string_t cpe_name?string_t cpu_bits?integer_t edition?string_t kernel_release?string_t
    lang?string_t name!string_t sp_name?string_t sp_ver?integer_t type?string_t type_id!integer_t=type
    version?string_t
  `,
  observable: `
    event_uid?string_t name+string_t reputation?reputation type?string_t type_id!integer_t=type
    type_uid?long_t=type_name value?string_t
  `,
  remediation: `
    cis_controls?cis_control[] desc!string_t kb_article_list?kb_article[] references?string_t[]
  `,
  related_event: `
    attacks?attack[] count?integer_t created_time?timestamp_t desc?string_t first_seen_time?timestamp_t
    kill_chain?kill_chain_phase[] last_seen_time?timestamp_t modified_time?timestamp_t observables?observable[]
    product?product severity?string_t severity_id+integer_t=severity status?string_t tags?key_value_object[]
    title?string_t traits?trait[] type?string_t type_name?string_t type_uid+long_t=type_name uid!string_t
  `,
  api: `
    group?group operation!string_t request+request response+response service?service token?token version?string_t
  `,
  service: `
    labels?string_t[] name+string_t tags?key_value_object[] uid+string_t version+string_t
  `,
  request: `
    containers?container[] data?json_t flags?string_t[] uid!string_t
  `,
  response: `
    code+integer_t containers?container[] data?json_t error+string_t error_message+string_t flags?string_t[]
    message+string_t
  `,
  actor: `
    app_name?string_t app_uid?string_t authorizations?authorization[] idp?idp process+process session?session
    user+user
  `,
  session: `
    count?integer_t created_time+timestamp_t credential_uid?string_t expiration_reason?string_t
    expiration_time?timestamp_t is_mfa?boolean_t is_remote+boolean_t is_vpn?boolean_t issuer+string_t
    terminal?string_t uid+string_t uid_alt?string_t uuid?uuid_t
  `,
  network_endpoint: `
    agent_list?agent[] autonomous_system?autonomous_system domain?string_t fingerprints?fingerprint[]
    hostname+hostname_t hw_info?device_hw_info instance_uid+string_t interface_name+string_t interface_uid+string_t
    intermediate_ips?ip_t[] ip+ip_t isp?string_t isp_org?string_t location?location mac?mac_t mac_vendor?string_t
    name+string_t network_scope?string_t network_scope_id?integer_t=network_scope os?os owner+user pool?group
    port+port_t proxy_endpoint?network_proxy subnet_uid?string_t svc_name+string_t type?string_t
    type_id+integer_t=type uid+string_t vlan_uid?string_t vpc_uid?string_t zone?string_t
  `,
  module: `
    base_address+string_t file+file function_invocation?function_invocation function_name+string_t
    load_type?string_t load_type_id+integer_t=load_type start_address+string_t type+string_t
  `,
  kernel: `
    is_system?boolean_t name!string_t path?file_path_t system_call?string_t type?string_t type_id!integer_t=type
  `,
  organization: `
    name+string_t ou_name+string_t ou_uid?string_t uid+string_t
  `,
  enrichment: `
    created_time+timestamp_t data!json_t desc?string_t name!string_t provider+string_t reputation?reputation
    short_desc+string_t src_url+url_t type+string_t value!string_t
  `,
}

/** Enumerations by attribute, or by `owner.attribute` where owners differ. Ids are OCSF's; 0 and 99 are Unknown and Other. */
export const ENUMS: Readonly<Record<string, Readonly<Record<number, string>>>> = {
  'detection_finding.activity_id': { 0: 'Unknown', 1: 'Create', 2: 'Update', 3: 'Close', 99: 'Other' },
  'api_activity.activity_id': { 0: 'Unknown', 1: 'Create', 2: 'Read', 3: 'Update', 4: 'Delete', 99: 'Other' },
  confidence_id: { 0: 'Unknown', 1: 'Low', 2: 'Medium', 3: 'High', 99: 'Other' },
  impact_id: { 0: 'Unknown', 1: 'Low', 2: 'Medium', 3: 'High', 4: 'Critical', 99: 'Other' },
  risk_level_id: { 0: 'Info', 1: 'Low', 2: 'Medium', 3: 'High', 4: 'Critical', 99: 'Other' },
  severity_id: {
    0: 'Unknown',
    1: 'Informational',
    2: 'Low',
    3: 'Medium',
    4: 'High',
    5: 'Critical',
    6: 'Fatal',
    99: 'Other',
  },
  'detection_finding.status_id': {
    0: 'Unknown',
    1: 'New',
    2: 'In Progress',
    3: 'Suppressed',
    4: 'Resolved',
    5: 'Archived',
    6: 'Deleted',
    99: 'Other',
  },
  'api_activity.status_id': { 0: 'Unknown', 1: 'Success', 2: 'Failure', 99: 'Other' },
  state_id: { 0: 'Unknown', 1: 'Active', 2: 'Suppressed', 3: 'Experimental', 99: 'Other' },
  'analytic.type_id': {
    0: 'Unknown',
    1: 'Rule',
    2: 'Behavioral',
    3: 'Statistical',
    4: 'Learning (ML/DL)',
    5: 'Fingerprinting',
    6: 'Tagging',
    7: 'Keyword Match',
    8: 'Regular Expressions',
    9: 'Exact Data Match',
    10: 'Partial Data Match',
    11: 'Indexed Data Match',
    99: 'Other',
  },
  'file.type_id': {
    0: 'Unknown',
    1: 'Regular File',
    2: 'Folder',
    3: 'Character Device',
    4: 'Block Device',
    5: 'Local Socket',
    6: 'Named Pipe',
    7: 'Symbolic Link',
    8: 'Executable File',
    99: 'Other',
  },
  'user.type_id': { 0: 'Unknown', 1: 'User', 2: 'Admin', 3: 'System', 4: 'Service', 99: 'Other' },
  'device.type_id': {
    0: 'Unknown',
    1: 'Server',
    2: 'Desktop',
    3: 'Laptop',
    4: 'Tablet',
    5: 'Mobile',
    6: 'Virtual',
    7: 'IOT',
    8: 'Browser',
    9: 'Firewall',
    10: 'Switch',
    11: 'Hub',
    12: 'Router',
    13: 'IDS',
    14: 'IPS',
    15: 'Load Balancer',
    99: 'Other',
  },
  'network_endpoint.type_id': {
    0: 'Unknown',
    1: 'Server',
    2: 'Desktop',
    3: 'Laptop',
    4: 'Tablet',
    5: 'Mobile',
    6: 'Virtual',
    7: 'IOT',
    8: 'Browser',
    9: 'Firewall',
    10: 'Switch',
    11: 'Hub',
    12: 'Router',
    13: 'IDS',
    14: 'IPS',
    15: 'Load Balancer',
    99: 'Other',
  },
  'os.type_id': {
    0: 'Unknown',
    99: 'Other',
    100: 'Windows',
    101: 'Windows Mobile',
    200: 'Linux',
    201: 'Android',
    300: 'macOS',
    301: 'iOS',
    302: 'iPadOS',
    400: 'Solaris',
    401: 'AIX',
    402: 'HP-UX',
  },
  'observable.type_id': { 0: 'Unknown', 99: 'Other' },
  'kernel.type_id': { 0: 'Unknown', 1: 'Shared Mutex', 2: 'System Call', 99: 'Other' },
  verdict_id: {
    0: 'Unknown',
    1: 'False Positive',
    2: 'True Positive',
    3: 'Disregard',
    4: 'Suspicious',
    5: 'Benign',
    6: 'Test',
    7: 'Insufficient Data',
    8: 'Security Risk',
    9: 'Managed Externally',
    10: 'Duplicate',
    99: 'Other',
  },
  integrity_id: {
    0: 'Unknown',
    1: 'Untrusted',
    2: 'Low',
    3: 'Medium',
    4: 'High',
    5: 'System',
    6: 'Protected',
    99: 'Other',
  },
  confidentiality_id: {
    0: 'Unknown',
    1: 'Not Confidential',
    2: 'Confidential',
    3: 'Secret',
    4: 'Top Secret',
    5: 'Private',
    6: 'Restricted',
    99: 'Other',
  },
  drive_type_id: { 0: 'Unknown', 1: 'Removable', 2: 'Fixed', 3: 'Remote', 4: 'CD-ROM', 5: 'RAM Disk', 99: 'Other' },
  algorithm_id: {
    0: 'Unknown',
    1: 'MD5',
    2: 'SHA-1',
    3: 'SHA-256',
    4: 'SHA-512',
    5: 'CTPH',
    6: 'TLSH',
    7: 'quickXorHash',
    8: 'SHA-224',
    9: 'SHA-384',
    10: 'SHA-512/224',
    11: 'SHA-512/256',
    12: 'SHA3-224',
    13: 'SHA3-256',
    14: 'SHA3-384',
    15: 'SHA3-512',
    16: 'xxHash H3 64-bit',
    17: 'xxHash H3 128-bit',
    18: 'Imphash',
    19: 'NPF',
    20: 'HASSH',
    99: 'Other',
  },
  role_id: { 0: 'Unknown', 1: 'Target', 2: 'Actor', 3: 'Affected', 4: 'Related', 99: 'Other' },
  network_scope_id: { 0: 'Unknown', 1: 'Internal', 2: 'External', 99: 'Other' },
  load_type_id: {
    0: 'Unknown',
    1: 'Standard',
    2: 'Non Standard',
    3: 'ShellCode',
    4: 'Mapped',
    5: 'NonStandard Backed',
    99: 'Other',
  },
}

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
