/** Which VMs' findings: all, or those with these uuids (lower case). */
export type VmScope = 'all' | ReadonlySet<string>

export function inScope(scope: VmScope, vm: string): boolean {
  return scope === 'all' || scope.has(vm)
}
