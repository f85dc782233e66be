/**
 * What the validator knows of OCSF 1.8.0: names, types and requirements of the two classes this library emits and of the
 * objects it fills; enumerations are in enums.ts, scalar types in scalars.ts. Source of all three: the OCSF schema, version
 * 1.8.0 (schema.ocsf.io), without profiles.
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
