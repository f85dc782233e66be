// Opens a domain and prints the error.
import { CloudAppError } from '@cloudapp/sdk'
import { openVm } from '@cloudapp/sdk/vmi'

for (const uri of process.argv.slice(2)) {
  const said = await openVm(uri).then(
    async (vm) => {
      await vm.close()
      return 'opened'
    },
    (error: unknown) => (CloudAppError.is(error) ? `${error.code}: ${error.message}` : String(error)),
  )
  console.log(said)
}
