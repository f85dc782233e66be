export function check(root: string): { breaches: string[]; files: number; imports: number }
