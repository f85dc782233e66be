/** One piece of evidence kept beside its finding, as the finding names it in `unmapped.cloudapp.artifacts`. */
export interface ArtifactRef {
  /** `sha256:` and the hexadecimal digest of its bytes: its name in `artifacts.read`. */
  readonly digest: string
  readonly bytes: number
  /** What it is, for people. May come from a hostile VM: escape it before it is shown or becomes a file name. */
  readonly name: string
  /** Media type (RFC 6838), as the author says. */
  readonly type: string
  /** There was more than an artifact may hold; these are its first bytes. */
  readonly truncated?: boolean
}

/** Evidence too large for the finding itself: a dump, a capture, a file. */
export interface ArtifactInput {
  readonly name: string
  /** `application/octet-stream` by default. */
  readonly type?: string
  /** All of it, or a stream of it; kept up to 64 MiB. */
  readonly data: Uint8Array | AsyncIterable<Uint8Array>
}
